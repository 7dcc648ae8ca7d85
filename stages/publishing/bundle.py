"""What is published: the generator as plain files, its model card, how it is served, and a list of hashes.

It is the folder `bundle` of the artifact. Its layout is that of `stages.sampling.bundle`, so `Generator.load` takes it
wherever it was copied to, and there are:

    README.md       the model card
    samples.png     what the model drew, where the stage sample made a sheet
    serving.json    the table that the model takes and gives when MLflow serves it
    SHA256SUMS      of all of these; `sha256sum --check SHA256SUMS`
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.artifacts import Artifact
from pipeline.errors import StageError
from pipeline.output import Output
from pipeline.versions.checksums import SUMS, sums_text
from stages.publishing.card import model_card
from stages.publishing.serving import SERVING, serving_description
from stages.sampling.bundle import BUNDLE, MAP_TOKENIZER, BundleDescription, Parts

FOLDER = "bundle"
SHEET, CARD = "samples.png", "README.md"


def write_bundle(output: Output, inputs: Mapping[str, Artifact], decision: Mapping[str, Any]) -> None:
    """Write the bundle into the artifact that is being made, below `bundle/`; every copied file is verified on the way.

    `inputs` are those of the stage publish by name: shards, tokenizer, tokens, prior, samples, evaluation, and
    cond_tokenizer where the prior is told a map. `decision` is the content of decision.json. The model card and the
    list of hashes are kept out of the digest, because they say when and with which code the inputs were made. Raises
    StageError where the artifacts do not belong together, DataError where one of their files is damaged.
    """
    parts = parts_of(inputs)
    bundle = _Bundle(output)
    sources = {artifact.folder: artifact for artifact in inputs.values()}
    for name, home, file in parts.files():
        bundle.copy(name, sources[home], file)
    bundle.add_json(BUNDLE, parts.told.model_dump(mode="json"))
    bundle.add_json(SERVING, serving_description(parts.description))
    if any(entry.path == "grid.png" for entry in inputs["samples"].own_files):
        bundle.copy(SHEET, inputs["samples"], "grid.png")
    card = model_card(inputs, parts, decision, bundle.hashes)
    bundle.add(CARD, card.encode(), content=False)
    output.write(f"{FOLDER}/{SUMS}", sums_text(bundle.hashes).encode(), content=False)


def parts_of(inputs: Mapping[str, Artifact]) -> Parts:
    """The generator's parts among finished artifacts. Raises StageError where one was not made with the others."""
    tokenizer, prior, tokens = inputs["tokenizer"], inputs["prior"], inputs["tokens"]
    maps = inputs.get(MAP_TOKENIZER)
    told = BundleDescription.of(tokens.recipe["config"], inputs["shards"].recipe["config"])
    parts = Parts(str(prior.folder), tokenizer.folder, prior.folder, maps.folder if maps else None, tokens.folder, told)
    expected: dict[str, tuple[str, Artifact | None]] = {"tokenizer": (parts.description.tokenizer, tokenizer)}
    for segment in parts.description.condition:
        if segment.tokenizer:
            expected[MAP_TOKENIZER] = (segment.tokenizer, maps)
    for name, (digest, made) in expected.items():
        if made is None or made.digest != digest:
            found = f"this one is {made.digest[:12]}" if made else "none is given"
            raise StageError(f"the prior was trained with {name} {digest[:12]}, {found}: run --stages encode..prior")
    return parts


@dataclass
class _Bundle:
    """Writes files and remembers their hashes."""

    output: Output
    hashes: dict[str, str] = field(default_factory=dict)

    def copy(self, name: str, source: Artifact, file: str) -> None:
        """Take a file of an artifact, whose manifest knows its hash."""
        with source.held(file) as path, self.output.writing(f"{FOLDER}/{name}") as target:
            shutil.copyfile(path, target)
        self.hashes[name] = next(entry.sha256 for entry in source.files if entry.path == file)

    def add_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.add(name, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())

    def add(self, name: str, data: bytes, *, content: bool = True) -> None:
        """Write a file."""
        self.output.write(f"{FOLDER}/{name}", data, content=content)
        self.hashes[name] = hashlib.sha256(data).hexdigest()
