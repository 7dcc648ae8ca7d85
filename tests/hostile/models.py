"""Checkpoints, weights and bundles: pickles, lying headers, and descriptions of models that nobody could hold."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from stages.models.interop.checkpoint import read_checkpoint
from stages.models.priors.load import load_prior
from stages.models.tokenizer import Tokenizer
from stages.models.tokenizer_config import EMAQuantizerConfig, LightBackboneConfig, TokenizerModelConfig
from stages.models.weights import read_weights
from stages.sampling.bundle import Parts
from stages.training.states import load_state
from tests.hostile.case import Hostile, Payload, pickled

REFUSED = "refused DataError: "
SMALL = TokenizerModelConfig(
    backbone=LightBackboneConfig(channels=(8, 8), residual_blocks=(0, 0), norm_groups=4),
    quantizer=EMAQuantizerConfig(num_codes=8, dim=4),
)


def checkpoint(folder: Path) -> str:
    """What an import makes of a foreign checkpoint."""
    return f"{len(read_checkpoint(folder / 'last.ckpt').weights)} tensors"


def weights(folder: Path) -> str:
    """What a loader makes of safetensors."""
    return f"{len(read_weights(folder / 'model.safetensors'))} tensors"


def tokenizer(folder: Path) -> str:
    """What `Tokenizer.load` makes of a folder."""
    return str(Tokenizer.load(folder).grid)


def prior(folder: Path) -> str:
    """What `load_prior` makes of a folder."""
    return str(load_prior(folder).grid)


def _file(name: str, data: bytes | Callable[[Path], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data(folder) if callable(data) else data) and None


def _saved(value: Callable[[Path], Any], **options: Any) -> Callable[[Path], None]:
    return lambda folder: torch.save(value(folder), folder / "last.ckpt", **options)


def _legacy_tar(folder: Path) -> bytes:
    """The oldest format of torch: a tar of which it extracted members, here a link that leads out."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors", "../../escape"):
            member = tarfile.TarInfo(name)
            if name == "storages":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(member)
            else:
                data = pickled(folder)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _zip_bomb(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**27))
        archive.writestr("archive/version", "3")
    return buffer.getvalue()


def _memo_bomb() -> bytes:
    """A pickle of tuples that hold the one before twice."""
    return (
        b"\x80\x02"
        + b"(lq\x00"
        + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
        + b"."
    )


def _header(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _tensors(**tensors: dict[str, Any]) -> bytes:
    return _header(json.dumps(tensors).encode(), bytes(64))


def _described(**changes: Any) -> Callable[[Path], None]:
    """A good tokenizer whose description was changed."""

    def write(folder: Path) -> None:
        Tokenizer(SMALL, image_size=16, channels=3).save(folder)
        text = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            at, (*sections, last) = text, key.split("__")
            for section in sections:
                at = at[section]
            at[last] = value
        (folder / "config.json").write_text(json.dumps(text))

    return write


def _prior(text: Any) -> Callable[[Path], None]:
    space = {"tokenizer": "x", "codebook_size": 8, "grid": [4, 4], "classes": ["a"], "image_size": 16, "channels": 3}

    def write(folder: Path) -> None:
        (folder / "config.json").write_text(text if isinstance(text, str) else json.dumps({**space, **text}))
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")

    return write


def _state(tree: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps(tree))
        save_file({"x": torch.zeros(2, 3)}, folder / "state.safetensors")

    return write


def _bundle(**files: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for part in ("tokenizer", "prior"):
            (folder / part).mkdir()
        _described()(folder / "tokenizer")
        _prior({"model": {}})(folder / "prior")
        for name, text in files.items():
            (folder / f"{name}.json").write_text(text)

    return write


def _parts(folder: Path) -> str:
    parts = Parts.find(folder)
    return f"{parts.description.grid} {parts.told} {parts.factor} {parts.box_codes}"


ENTRY = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
CASES = [
    Hostile("pickle.ckpt", _file("last.ckpt", pickled), checkpoint, REFUSED + ".*(could execute code|no checkpoint)"),
    Hostile(
        "payload in a state_dict.ckpt",
        _saved(lambda folder: {"state_dict": {"w": Payload(folder)}}),
        checkpoint,
        REFUSED + ".*could execute code",
    ),
    Hostile(
        "payload in the old format.ckpt",
        _saved(lambda folder: {"w": Payload(folder)}, _use_new_zipfile_serialization=False),
        checkpoint,
        REFUSED,
    ),
    Hostile("tar with links that lead out.ckpt", _file("last.ckpt", _legacy_tar), checkpoint, REFUSED),
    Hostile("128 MB of zeros, compressed.ckpt", _file("last.ckpt", _zip_bomb), checkpoint, REFUSED, slow=True),
    Hostile("2^60 items in a pickle.ckpt", _file("last.ckpt", _memo_bomb()), checkpoint, REFUSED),
    Hostile("a list.ckpt", _saved(lambda folder: [1, 2]), checkpoint, REFUSED + ".*holds no state_dict"),
    Hostile(
        "pickle.safetensors", _file("model.safetensors", pickled), weights, REFUSED + ".*cannot be read as safetensors"
    ),
    Hostile(
        "header of 10 GB.safetensors",
        _file("model.safetensors", struct.pack("<Q", 10**10) + b"{}"),
        weights,
        REFUSED + ".*cannot be read as safetensors",
    ),
    Hostile("header of 2^64-1.safetensors", _file("model.safetensors", b"\xff" * 8 + b"{}"), weights, REFUSED),
    Hostile("empty.safetensors", _file("model.safetensors", b""), weights, REFUSED),
    Hostile(
        "tensors that overlap.safetensors", _file("model.safetensors", _tensors(a=ENTRY, b=ENTRY)), weights, REFUSED
    ),
    Hostile(
        "tensor beyond the end.safetensors",
        _file("model.safetensors", _tensors(a={**ENTRY, "data_offsets": [0, 2**40]})),
        weights,
        REFUSED,
    ),
    Hostile(
        "shape of 2^80.safetensors",
        _file("model.safetensors", _tensors(a={**ENTRY, "shape": [2**40, 2**40]})),
        weights,
        REFUSED,
    ),
    Hostile(
        "shape below zero.safetensors",
        _file("model.safetensors", _tensors(a={**ENTRY, "shape": [-4]})),
        weights,
        REFUSED,
    ),
    Hostile(
        "unknown type.safetensors", _file("model.safetensors", _tensors(a={**ENTRY, "dtype": "PY"})), weights, REFUSED
    ),
    Hostile("200,000 brackets.safetensors", _file("model.safetensors", _header(b"[" * 200_000)), weights, REFUSED),
    Hostile(
        "tokenizer of 10^9 codes", _described(model__quantizer__num_codes=10**9), tokenizer, REFUSED + ".*does not fit"
    ),
    Hostile("tokenizer of 10^12 channels", _described(model__backbone__channels=[10**12, 10**12]), tokenizer, REFUSED),
    Hostile(
        "tokenizer of 10^9 blocks",
        _described(model__backbone__residual_blocks=[10**9, 1]),
        tokenizer,
        REFUSED + ".*describes no tokenizer",
    ),
    Hostile(
        "tokenizer of 10^9 levels",
        _described(model__backbone={"kind": "light", "channels": [8] * 10**5}),
        tokenizer,
        REFUSED + ".*describes no tokenizer",
    ),
    Hostile(
        "tokenizer of pictures of 10^9 pixels",
        _described(image_size=10**9),
        tokenizer,
        REFUSED + ".*describes no tokenizer",
    ),
    Hostile("prior of 10^9 layers", _prior({"model": {"num_layers": 10**9}}), prior, REFUSED + ".*describes no prior"),
    Hostile(
        "prior of width 10^9",
        _prior({"model": {"width": 8 * 10**9}}),
        prior,
        REFUSED + ".*(does not fit|no possible model)",
    ),
    Hostile(
        "prior of a grid of 10^9",
        _prior({"grid": [10**9, 10**9], "model": {}}),
        prior,
        REFUSED + ".*describes no prior",
    ),
    Hostile("prior that is 200,000 brackets", _prior("[" * 200_000), prior, REFUSED + ".*describes no prior"),
    Hostile(
        "state with a tensor of 2^60",
        _state({"a": {"$tensor": "x", "strides": [2**60, 1]}}),
        lambda folder: load_state(folder, "state"),
        "refused (RuntimeError|StageError)",
    ),
    Hostile("bundle.json of 200,000 brackets", _bundle(bundle="[" * 200_000), _parts, REFUSED + ".*is damaged"),
    Hostile("bundle.json that is a list", _bundle(bundle="[1]"), _parts, REFUSED + ".*is damaged"),
    Hostile("boxes.json of nonsense", _bundle(boxes='{"classes": 3}'), _parts, REFUSED + ".*numbers no boxes"),
]
