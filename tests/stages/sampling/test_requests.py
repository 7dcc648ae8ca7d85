"""Files of requests: what their rows become, and what is refused with which words."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from stages.data.tables import write_table
from stages.models.priors.configs import GPTConfig, PriorDescription
from stages.models.vocabulary import Segment
from stages.sampling.requests import check_requests, list_requests, read_requests
from stages.sampling.wanted import requested_slots


def prior(*kinds: str) -> PriorDescription:
    segments = {"class": Segment(kind="class", length=1, size=3), "caption": Segment(kind="caption", length=4, size=99)}
    return PriorDescription(
        tokenizer="t",
        codebook_size=20,
        grid=(2, 2),
        classes=("cats", "dogs", "owls"),
        image_size=16,
        channels=3,
        condition=tuple(segments[kind] for kind in kinds) or (Segment(kind="none", length=1, size=0),),
        model=GPTConfig(num_layers=1, num_heads=2, width=16),
    )


def write(tmp_path: Path, text: str, name: str = "r.csv") -> str:
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_csv_jsonl_and_parquet_say_the_same(tmp_path: Path) -> None:
    csv = write(tmp_path, "id,label,seed,size,count\na,cats,7,,2\nb,owls,,16x24,\n")
    lines = [{"id": "a", "label": "cats", "seed": 7, "count": 2}, {"id": "b", "label": "owls", "size": "16 x 24"}]
    jsonl = write(tmp_path, "\n\n".join(map(json.dumps, lines)), "r.jsonl")
    columns = {"id": ["a", "b"], "label": ["cats", "owls"], "seed": [7, None], "size": [None, "16x24"], "count": [2, 1]}
    write_table(tmp_path / "r.parquet", columns)
    found = [[it.request for it in read_requests(place)] for place in (csv, jsonl, str(tmp_path / "r.parquet"))]
    assert found[0] == found[1] == found[2]
    assert [(it.id, it.label, it.seed, it.size, it.count) for it in found[0]] == [
        ("a", "cats", 7, None, 2),
        ("b", "owls", None, (16, 24), 1),
    ]


def test_noise_belongs_to_seed_and_copy_or_to_the_id(tmp_path: Path) -> None:
    asked = read_requests(write(tmp_path, "id,label,seed,count\na,cats,7,3\nb,dogs,7,1\nc,owls,,2\nd,owls,,1\n"))
    slots = requested_slots(asked, seed=11, keep=1)
    assert [slot.key for slot in slots] == ["a-0", "a-1", "a-2", "b-0", "c-0", "c-1", "d-0"]
    assert [slot.sample_id for slot in slots] == list(range(7))
    assert [(slot.seed, slot.noise_id) for slot in slots[:4]] == [(7, 0), (7, 1), (7, 2), (7, 0)]
    assert {slot.seed for slot in slots[4:]} == {11}
    assert slots[5].noise_id == slots[4].noise_id + 1
    assert abs(slots[6].noise_id - slots[4].noise_id) > 10
    assert max(slot.noise_id for slot in slots) < 2**63
    alone = requested_slots(asked[2:3], seed=11, keep=1)
    assert [slot.noise_id for slot in alone] == [slots[4].noise_id, slots[5].noise_id]


def test_copies_that_are_chosen_together_share_their_noise(tmp_path: Path) -> None:
    slots = requested_slots(read_requests(write(tmp_path, "id,seed,count\na,7,5\n")), seed=0, keep=2)
    assert [(slot.noise_id, slot.rank, slot.group) for slot in slots] == [
        (0, 0, 0),
        (0, 1, 0),
        (2, 0, 2),
        (2, 1, 2),
        (4, 0, 4),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label\na,cats\na,dogs\n", r"r.csv, line 3: id 'a' is taken \(before: line 2\)"),
        ("id,seed\na,-3\n", r"line 2: seed is '-3': Input should be greater than or equal to 0: correct or remove"),
        ("id,seed\na,9223372036854775808\n", "line 2: seed is '9223372036854775808'"),
        ("id,seed\na,1.5\n", "line 2: seed is '1.5'"),
        ("id,count\na,0\n", "line 2: count is '0'"),
        ("id,count\na,1000000\nb,1\n", "line 3: up to here 1,000,001 pictures are asked for, a file may ask for 1,000"),
        ("id,size\na,64\n", "line 2: size is '64': write HEIGHTxWIDTH in pixels, e.g. 96x128"),
        ("id\n../a\n", r"line 2: id is '\.\./a': String should match pattern"),
        ("label\ncats\n", "line 2: no id: give every request a name"),
        ("id,lable\na,cats\n", "line 2: unknown column 'lable'; did you mean label?"),
        ("id,label\na\n", "line 2: 1 cells for the 2 columns id, label"),
        ("id,label\n", "has no rows: add one for each picture"),
        ("", "has no rows"),
        (
            f"id,caption\na,{'x' * 2001}\n",
            r"line 2: caption is 'x+\.\.\. \(2,003 characters\): String should have at most",
        ),
        (f"id,caption\na,{'x' * 10_000_000}\n", "line 2: a field has more than 1,048,576 bytes: name a file, or"),
    ],
)
def test_a_bad_csv_is_refused_naming_line_value_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_requests(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a"}\n{"id": \n', "r.jsonl, line 2: no JSON"),
        ('["a"]\n', "line 1: .* is no object"),
        ('{"id": "a", "seed": true}', "line 1: seed is True: write a number or text"),
        ('{"id": "a", "caption": ["x"]}', r"line 1: caption is \['x'\]: Input should be a valid string"),
        ('{"id": "a", "caption": "' + "x" * 10_000_000 + '"}', "line 1: it has more than 1,048,576 bytes"),
        ("[" * 100_000, "line 1: no JSON"),
    ],
)
def test_bad_json_lines_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_requests(write(tmp_path, text, "r.jsonl"))


def test_another_kind_of_file_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its kind is \.txt: make it a \.csv, \.jsonl or \.parquet file"):
        read_requests(write(tmp_path, "a", "r.txt"))
    with pytest.raises(DataError, match=r"there is no file .*gone\.csv"):
        list(list_requests(str(tmp_path / "gone.csv")))
    (tmp_path / "r.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_requests(str(tmp_path / "r.parquet"))


@pytest.mark.parametrize(
    ("kinds", "text", "message"),
    [
        (("class",), "id,label\na,cat\n", r"line 2: the prior knows no class 'cat'; did you mean cats\?"),
        (("class",), "id,label\na,zebras\n", "no class 'zebras'; it knows cats, dogs, owls"),
        (
            ("class",),
            "id,label,caption\na,cats,hello\n",
            "caption 'hello', but this prior is told class: train it with",
        ),
        (("caption",), "id,label\na,cats\n", "label 'cats', but this prior is told caption: empty the column"),
        (("class",), "id,label\na,\n", "line 2: nothing is asked for; this prior is told class"),
        (("class", "caption"), "id,condition_key\na,pic-1\n", r"no held-out picture 'pic-1' .*; did you mean pic-10\?"),
        (
            ("class",),
            "id,label,size\na,cats,16x20\n",
            "size 16x20 is no multiple of the 8 pixels of a token: ask for 16x24",
        ),
        (("class",), "id,label,size\na,cats,8x16\n", "size 8x16 is below the prior's own 16x16"),
        (("class",), "id,label,size\na,cats,16x9000\n", "size 16x9000 has more than 8192 pixels of side"),
    ],
)
def test_what_a_prior_cannot_draw_is_refused(tmp_path: Path, kinds: tuple[str, ...], text: str, message: str) -> None:
    asked = read_requests(write(tmp_path, text))
    with pytest.raises(DataError, match=message) as caught:
        check_requests(asked, prior(*kinds), ["pic-10", "other"])
    assert caught.value.exit_code == 3


def test_a_prior_that_is_told_nothing_needs_no_condition(tmp_path: Path) -> None:
    check_requests(read_requests(write(tmp_path, "id\na\n")), prior(), [])


def test_numbers_may_be_ids_and_labels(tmp_path: Path) -> None:
    write_table(tmp_path / "r.parquet", {"id": np.array([1.0, 2.0]), "label": np.array([3, 4])})
    assert [(it.request.id, it.request.label) for it in read_requests(str(tmp_path / "r.parquet"))] == [
        ("1", "3"),
        ("2", "4"),
    ]
