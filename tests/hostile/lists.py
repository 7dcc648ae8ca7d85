"""Lists of pictures, requests and folders of classes: CSV, JSON lines, Parquet and names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.data.sources import FolderSource, ListSource, list_source, read_pictures
from stages.sampling.requests import read_requests
from tests.hostile.case import Hostile, pickled

REFUSED = "refused DataError: "


def listed(folder: Path) -> str:
    """What the pipeline makes of the one list in a folder."""
    path = next(path for path in folder.iterdir() if path.suffix in (".csv", ".jsonl", ".parquet"))
    config = ListSource(path=str(path))
    return f"{len(read_pictures(config, list_source(config)))} pictures"


def asked(folder: Path) -> str:
    """The same of a file of requests."""
    path = next(path for path in folder.iterdir() if path.suffix in (".csv", ".jsonl", ".parquet"))
    return f"{len(read_requests(str(path)))} requests"


def walked(folder: Path) -> str:
    """What the pipeline makes of a folder of pictures."""
    config = FolderSource(path=str(folder))
    return f"{len(read_pictures(config, list_source(config)))} pictures"


def _text(name: str, text: str | bytes, *pictures: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for picture in pictures:
            Image.new("RGB", (64, 64)).save(folder / picture)
        (folder / name).write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)

    return write


def _table(columns: dict[str, Any], **options: Any) -> Callable[[Path], None]:
    return lambda folder: pq.write_table(pa.table(columns), folder / "list.parquet", **options)


def _repeated_rows(folder: Path) -> None:
    """A few kilobytes that stand for 50 million rows."""
    column = pa.DictionaryArray.from_arrays(pa.array(bytes(10**6), pa.int8()), pa.array(["x" * 1000]))
    table = pa.table({"path": column})
    with pq.ParquetWriter(folder / "list.parquet", table.schema, compression="zstd") as writer:
        for _ in range(50):
            writer.write_table(table)


def _huge_value(folder: Path) -> None:
    pq.write_table(pa.table({"path": ["x" * 2**26], "id": ["a"]}), folder / "list.parquet", compression="zstd")


def _not_utf8(folder: Path) -> None:
    text = pa.array([b"\xff\xfe\x00"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"path": text}), folder / "list.parquet")


def _pickled_type(folder: Path) -> None:
    """The way of CVE-2023-47248: a type whose description is a pickle."""
    meta = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled(folder)}
    schema = pa.schema([pa.field("path", pa.string(), metadata=meta)])
    pq.write_table(pa.table({"path": ["a.png"]}, schema=schema), folder / "list.parquet")


def _absurd_footer(folder: Path) -> None:
    path = folder / "list.parquet"
    pq.write_table(pa.table({"path": ["a.png"]}), path)
    data = path.read_bytes()
    path.write_bytes(data[:-8] + b"\xff\xff\xff\x7f" + data[-4:])


def _named(*names: str | bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in names:
            path = folder / (name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64)).save(path, "PNG")

    return write


def _ring(folder: Path) -> None:
    _named("a/1.png")(folder)
    (folder / "a" / "again").symlink_to(folder)
    (folder / "loop.png").symlink_to("loop.png")


DEEP = "[" * 200_000
CASES = [
    Hostile(
        "field of 10 MB.csv", _text("l.csv", "path\n" + "x" * 10**7 + "\n"), listed, REFUSED + ".*a field has more"
    ),
    Hostile(
        "quoted field of 10 MB.csv",
        _text("l.csv", 'path\n"' + "x\n" * 5 * 10**6 + '"\n'),
        listed,
        REFUSED + ".*a field",
    ),
    Hostile(
        "10 MB of commas.csv", _text("l.csv", "path\n" + "," * 10**7 + "\n"), listed, REFUSED + ".*more than 1,048"
    ),
    Hostile("NUL bytes.csv", _text("l.csv", "path\na\0b.png\n"), listed, REFUSED + r".*'a\\x00b\.png' cannot be read"),
    Hostile("UTF-16.csv", _text("l.csv", "path\na.png\n".encode("utf-16")), listed, REFUSED + ".*no UTF-8 CSV"),
    Hostile("Latin-1.csv", _text("l.csv", "path\nfrüh.png\n".encode("latin-1")), listed, REFUSED + ".*no UTF-8 CSV"),
    Hostile("two columns of one name.csv", _text("l.csv", "path,path\na,b\n"), listed, REFUSED + ".*two columns"),
    Hostile(
        "label that clears the terminal.csv",
        _text("l.csv", "path,label\na.png,\x1b[2J\n", "a.png"),
        listed,
        REFUSED + ".*label is",
    ),
    Hostile(
        "label in reversed writing.csv",
        _text("l.csv", "path,label\na.png,\u202egnp\n", "a.png"),
        listed,
        REFUSED + ".*label is",
    ),
    Hostile("path of a device.csv", _text("l.csv", "path\n/dev/zero\n"), listed, "accepted 1 pictures"),
    Hostile("nothing but a byte order mark.csv", _text("l.csv", b"\xef\xbb\xbf"), listed, REFUSED + ".*has no rows"),
    Hostile("200,000 brackets.jsonl", _text("l.jsonl", DEEP), listed, REFUSED + ".*no JSON"),
    Hostile(
        "half a character.jsonl", _text("l.jsonl", '{"path": "a", "caption": "\\ud800"}'), listed, REFUSED + ".*no JSON"
    ),
    Hostile(
        "number of 10^5 digits.jsonl", _text("l.jsonl", '{"path": ' + "9" * 10**5 + "}"), listed, REFUSED + ".*no JSON"
    ),
    Hostile(
        "line of 10 MB.jsonl", _text("l.jsonl", json.dumps({"path": "x" * 10**7})), listed, REFUSED + ".*it has more"
    ),
    Hostile(
        "boxes 200,000 deep.jsonl",
        _text("l.jsonl", json.dumps({"path": "a", "boxes": DEEP})),
        listed,
        REFUSED + ".*are no JSON",
    ),
    Hostile(
        "boxes of infinities.jsonl",
        _text("l.jsonl", '{"path": "a", "boxes": [["x", 0, 0, 1e999, 1]]}'),
        listed,
        REFUSED + ".*must be",
    ),
    Hostile("path is an object.jsonl", _text("l.jsonl", '{"path": {"a": 1}}'), listed, REFUSED + ".*path is"),
    Hostile(
        "50 million rows in kilobytes.parquet",
        _repeated_rows,
        listed,
        REFUSED + ".*(is listed again|cannot be read at)",
        slow=True,
    ),
    Hostile("value of 64 MB in kilobytes.parquet", _huge_value, listed, REFUSED + ".*a value has more than 1,048"),
    Hostile("text that is none.parquet", _not_utf8, listed, REFUSED + ".*cannot be read as Parquet"),
    Hostile("pickled type.parquet", _pickled_type, listed, REFUSED + ".*a.png.* cannot be read at"),
    Hostile("footer of 2 GB.parquet", _absurd_footer, listed, REFUSED + ".*cannot be read as Parquet"),
    Hostile("path is a number.parquet", _table({"path": [1.5, 2.5]}), listed, REFUSED + ".*path is 1.5"),
    Hostile("path is a list.parquet", _table({"path": [["a"], ["b"]]}), listed, REFUSED + ".*path is"),
    Hostile(
        "20,000 columns.parquet", _table({f"c{n}": [n] for n in range(20_000)}), listed, REFUSED + ".*no column 'path'"
    ),
    Hostile(
        "count of 10^9.csv", _text("l.csv", "id,count\na,1000000000\n"), asked, REFUSED + ".*count is '1000000000'"
    ),
    Hostile(
        "requests that add up to 10^9.csv",
        _text("l.csv", "id,count\n" + "".join(f"a{n},1000000\n" for n in range(999))),
        asked,
        REFUSED + ".*may ask for",
    ),
    Hostile("id that climbs out.csv", _text("l.csv", "id\n../../escape\n"), asked, REFUSED + ".*id is"),
    Hostile(
        "caption of 1 MB.csv", _text("l.csv", "id,caption\na," + "x" * 10**6 + "\n"), asked, REFUSED + ".*caption is"
    ),
    Hostile("value of 64 MB.parquet", _huge_value, asked, "accepted 1 requests"),
    Hostile("class folder with a line break", _named("a\nb/1.png"), walked, REFUSED + ".*cannot be printed"),
    Hostile("class folder that clears the terminal", _named("\x1b[2J/1.png"), walked, REFUSED + ".*cannot be printed"),
    Hostile("class folder that is no UTF-8", _named(b"\xff\xfe/1.png"), walked, REFUSED + ".*cannot be printed"),
    Hostile(
        "file names with line breaks and escapes",
        _named("a\nb.png", "\x1b[2J.png", b"\xff.png"),
        walked,
        "accepted 3 pictures",
    ),
    Hostile("folders in a ring", _ring, walked, REFUSED + ".*loop.png cannot be read .*Too many levels"),
]
