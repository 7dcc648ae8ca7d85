"""What is published: complete, without pickles, loadable anywhere, and described truly."""

import io
import json
import pickle
import pickletools
import re
import shutil
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.errors import StageError
from pipeline.storage import Folder
from pipeline.versions.checksums import check, read_sums
from pipeline.workdir import Workdir
from stages.publishing.bundle import parts_of
from stages.publishing.card import num_weights
from stages.publishing.markdown import plain
from stages.sampling.generator import Generator
from tests.stages.publishing.published import publish_made_up
from tests.stages.tiny import tiny_tokenizer

pytestmark = pytest.mark.slow

NAMES = [
    "README.md",
    "bundle.json",
    "prior/config.json",
    "prior/model.safetensors",
    "serving.json",
    "tokenizer/config.json",
    "tokenizer/model.safetensors",
]


def test_the_bundle_holds_what_it_lists_and_draws_the_same_elsewhere(published, bundle, tmp_path):
    assert sorted(read_sums(Folder.at(bundle))) == NAMES
    check(bundle)
    found = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    assert found == sorted([*NAMES, "SHA256SUMS"])
    shutil.copytree(bundle, tmp_path / "elsewhere")
    workdir = published.folder.path.parents[1]
    ask = {"label": "squares", "seed": 3, "count": 2}
    here, there = (
        np.stack([np.asarray(it) for it in Generator.load(place).generate(**ask)])
        for place in (workdir, tmp_path / "elsewhere")
    )
    assert here.shape == (2, 32, 32, 3)
    assert np.array_equal(here, there)


def is_pickle(data: bytes) -> bool:
    """Whether these are a pickle from end to end, or a zip, which torch.save writes pickles into."""
    try:
        list(pickletools.genops(data))
    except (ValueError, UnicodeDecodeError, IndexError):
        return zipfile.is_zipfile(io.BytesIO(data))
    return True


def test_nothing_in_a_bundle_is_a_pickle(bundle):
    assert is_pickle(pickle.dumps({"a": [1, "b"]}))
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert len(files) == len(NAMES) + 1
    for path in files:
        assert path.suffix in (".json", ".safetensors", ".md", ""), path
        assert not is_pickle(path.read_bytes()), path
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        if path.suffix == ".safetensors":
            assert load_file(path)


def test_equal_inputs_give_an_equal_digest_whoever_made_them_when(published, tmp_path):
    again = publish_made_up(tmp_path / "runs")
    assert again.digest == published.digest
    content = {entry.path for entry in published.own_files}
    assert content == {f"bundle/{name}" for name in NAMES if name != "README.md"} | {"decision.json"}


def test_the_card_says_what_it_is_learnt_from_how_good_and_whether_it_is_used(published, bundle):
    card = (bundle / "README.md").read_text()
    weights = sum(array.size for array in load_file(bundle / "prior/model.safetensors").values())
    assert f"| prior | {weights:,} | " in card
    assert "condition_dropout 0.1, dropout 0.1, form reference, kind gpt" in card
    assert "told class: a tokenizer turns pictures into a grid of 4x4 tokens" in card
    assert "8 pictures to train on, 6 held out" in card
    assert r"Shapes by \<nobody\>, CC0" in card
    assert "- Classes: discs, squares, stripes" in card
    assert "| `kid` | lower | 0.0421 (0.0310 to 0.0520) |\n" in card
    assert "- Samples: 36 pictures; samples against held-out pictures; pooled features\n" in card
    assert card.index("| `kid` | ") < card.index("### Other figures") < card.index("| `psnr` | ")
    assert "Verdict: **champion**, judged against version 6." in card
    assert "- kid\\_samples fell from 0.06 to 0.0421." in card
    assert r"| kid_samples lower, margin 0.0 | yes | 0.0421 is below 0.06 \| by more than 0 |" in card
    for name, digest in read_sums(Folder.at(bundle)).items():
        assert name == "README.md" or f"| {name} | `{digest}` |" in card
    for name, digest in json.loads((published.folder.path / "manifest.json").read_text())["recipe"]["inputs"].items():
        assert f"| {name} | `{digest}` |" in card
    assert str(published.folder.path.parents[1]) not in card


def test_the_cards_code_draws(bundle, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(bundle)
    drawn: dict = {}
    exec(code.replace("THIS FOLDER", ".").replace('picture.save("picture.png")', ""), drawn)
    assert drawn["picture"].size == (32, 32)


def test_a_prior_of_another_tokenizer_is_not_published(published, tmp_path):
    workdir = Workdir(Folder.at(published.folder.path.parents[1]))
    stages = {"shards": "shard", "tokens": "encode", "prior": "prior", "tokenizer": "tokenizer"}
    inputs = {name: workdir.made_last(stage) for name, stage in stages.items()}
    assert parts_of(inputs).description.classes == ("discs", "squares", "stripes")
    other = tiny_tokenizer(tmp_path)
    told = f"trained with tokenizer {inputs['tokenizer'].digest[:12]}, this one is {other.digest[:12]}"
    with pytest.raises(StageError, match=told):
        parts_of(inputs | {"tokenizer": other})


def test_names_from_outside_cannot_change_the_card():
    assert plain("a|b\n# c <script> [x](y) `z` *w*") == r"a\|b \# c \<script\> \[x\](y) \`z\` \*w\*"


def test_weights_are_counted_without_reading_them(bundle):
    for name in ("prior", "tokenizer"):
        path = bundle / name / "model.safetensors"
        assert num_weights(path) == sum(array.size for array in load_file(path).values())
