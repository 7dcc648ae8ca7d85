"""The encode stage: the right tokens in the right rows, only what is missing, and the same bytes after a crash."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.artifacts import Artifact
from pipeline.errors import DataError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from stages.data.captions import Captions
from stages.data.images import decode_image, to_model_range
from stages.data.shards import ShardReader, open_split
from stages.data.tables import TokenTable, read_tokens
from stages.data.windows import variant_window
from stages.encode import EncodeWork, encode
from stages.encoding import shard_encoder
from stages.maps import make_maps
from stages.models.tokenizer import Tokenizer
from stages.models.vocabulary import TokenCorpus
from tests.stages.tiny import tiny_shards, tiny_tokenizer

CONFIG = EncodeWork(batch_size=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    workdir = tmp_path_factory.mktemp("encode")
    return {"shards": tiny_shards(workdir), "tokenizer": tiny_tokenizer(workdir)}


def run(inputs: dict[str, Artifact], workdir: Path, config: EncodeWork = CONFIG) -> Artifact:
    return run_stage(Stage("encode", encode, config, inputs), inputs, str(workdir), LocalRuntime())  # type: ignore[arg-type]


def make(shards: Artifact, workdir: Path, condition: Any) -> Artifact:
    inputs = {"shards": shards}
    return run_stage(Stage("maps", make_maps, condition, inputs), inputs, str(workdir), LocalRuntime())  # type: ignore[arg-type]


def tables(artifact: Artifact) -> dict[str, TokenTable]:
    return {unit.name: read_tokens(artifact.local(entry.path)) for unit, entry in artifact.unit_files(".parquet")}


def tokens_one_by_one(made: dict[str, Artifact], shard: Any, *, mirrored: bool = False) -> list[list[int]]:
    tokenizer = Tokenizer.load(made["tokenizer"].local("model.safetensors").parent)
    reader = ShardReader(shard)
    pictures = [decode_image(reader.read_image(i), 3) for i in range(len(reader))]
    pictures = [np.array(picture[:, ::-1] if mirrored else picture) for picture in pictures]
    return [tokenizer.encode(to_model_range(picture[None])).flatten().tolist() for picture in pictures]


def test_rows_are_the_pictures_in_order_with_the_tokenizers_tokens(made: dict[str, Artifact], tmp_path: Path) -> None:
    got = tables(run(made, tmp_path))
    assert list(got) == ["train-000000", "train-000001", "val-000000"]
    for shard in (*open_split(made["shards"], "train"), *open_split(made["shards"], "val")):
        table, reader = got[shard.name], ShardReader(shard)
        assert table.keys == [row["key"] for row in reader.table]
        assert table.labels.tolist() == [row["label"] for row in reader.table]
        assert table.captions == [row["caption"] for row in reader.table]
        assert table.variants.tolist() == [0] * len(reader)
        assert table.tokens_NT.tolist() == tokens_one_by_one(made, shard)


def test_the_corpus_is_described_beside_its_tables(made: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(made, tmp_path)
    digest = made["tokenizer"].digest
    assert artifact.read_json("tokens.json") == {
        "tokenizer": digest,
        "codebook_size": 20,
        "grid": [2, 2],
        "classes": ["cats", "dogs", "owls"],
        "condition": [{"kind": "class", "length": 1, "size": 3, "grid": None, "tokenizer": None}],
        "image_size": 16,
        "channels": 3,
        "num_train": 8,
        "num_val": 2,
    }
    metadata = tables(artifact)["train-000001"].metadata
    assert metadata["tokenizer"] == digest
    assert (metadata["codebook_size"], json.loads(metadata["grid"])) == ("20", [2, 2])
    assert json.loads(metadata["classes"]) == ["cats", "dogs", "owls"]
    used = np.unique(np.concatenate([table.tokens_NT.ravel() for table in tables(artifact).values()]))
    assert artifact.metrics["codes_used"] == len(used) > 3
    assert (artifact.metrics["pictures"], artifact.metrics["tokens"]) == (10, 40)
    assert artifact.notes["pictures_per_second"] > 0


def test_flips_add_a_mirrored_variant_of_training_pictures_alone(made: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(made, tmp_path, CONFIG.model_copy(update={"flips": True}))
    shard = open_split(made["shards"], "train")[0]
    table = tables(artifact)[shard.name]
    assert table.variants.tolist() == [0, 1] * 5
    assert table.keys[::2] == table.keys[1::2]
    assert table.tokens_NT[::2].tolist() == tokens_one_by_one(made, shard)
    assert table.tokens_NT[1::2].tolist() == tokens_one_by_one(made, shard, mirrored=True)
    assert tables(artifact)["val-000000"].variants.tolist() == [0, 0]
    assert artifact.read_json("tokens.json")["num_train"] == 16


def test_a_grown_corpus_encodes_only_its_new_shards(made: dict[str, Artifact], tmp_path: Path) -> None:
    before = run(made, tmp_path)
    grown = {**made, "shards": tiny_shards(tmp_path, pictures=(5, 3, 4))}
    after = run(grown, tmp_path)
    assert after.notes["units_reused"] == 3
    assert [unit.name for unit in after.units] == ["train-000000", "train-000001", "train-000002", "val-000000"]
    assert {unit.key for unit in before.units} < {unit.key for unit in after.units}
    assert after.metrics["pictures"] == 14


def test_another_tokenizer_or_precision_encodes_everything_again(made: dict[str, Artifact], tmp_path: Path) -> None:
    before = run(made, tmp_path)
    other = run({**made, "tokenizer": tiny_tokenizer(tmp_path, seed=1)}, tmp_path)
    low = run(made, tmp_path, CONFIG.model_copy(update={"precision": "bf16"}))
    assert other.notes["units_reused"] == low.notes["units_reused"] == 0
    assert other.digest != before.digest


def test_shards_in_any_order_and_company_give_the_same_bytes(made: dict[str, Artifact], tmp_path: Path) -> None:
    reference = {unit.name: unit.digest for unit in run(made, tmp_path / "whole").units}

    class TwoWorkersBackwards(LocalRuntime):
        def map_units(self, store: Any, make_worker: Any, units: Any, reporter: Any, *, gpu: bool = True) -> Any:
            workers = [make_worker("cpu"), make_worker("cpu")]
            for n, unit in enumerate(reversed(units)):
                yield store.make(unit, workers[n % 2])

    stage = Stage("encode", encode, CONFIG, made)  # type: ignore[arg-type]
    shared = run_stage(stage, made, str(tmp_path / "shared"), TwoWorkersBackwards())
    assert {unit.name: unit.digest for unit in shared.units} == reference


def encode_and_die(inputs: dict[str, Artifact], workdir: Path) -> None:
    original = shard_encoder.ShardEncoder.__call__

    def killed_after_writing_the_second(encoder: Any, unit: Any, folder: Path) -> Any:
        counts = original(encoder, unit, folder)
        if unit.name == "train-000001":
            os.kill(os.getpid(), signal.SIGKILL)
        return counts

    shard_encoder.ShardEncoder.__call__ = killed_after_writing_the_second  # type: ignore[method-assign]
    run(inputs, workdir)


@pytest.mark.slow
def test_killed_encode_resumes_to_the_same_bytes(made: dict[str, Artifact], tmp_path: Path) -> None:
    uninterrupted = run(made, tmp_path / "whole")
    child = multiprocessing.get_context("spawn").Process(target=encode_and_die, args=(made, tmp_path / "killed"))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    resumed = run(made, tmp_path / "killed")
    assert resumed.notes["units_reused"] == 1
    assert resumed.digest == uninterrupted.digest
    assert resumed.files == uninterrupted.files


def test_batches_made_ahead_come_in_order_and_bring_their_errors() -> None:
    def make(number: int) -> np.ndarray:
        if number == 6:
            raise DataError("the seventh is damaged")
        return np.array([number])

    got: list[int] = []
    with pytest.raises(DataError, match="the seventh is damaged"):
        got.extend(int(batch[0]) for batch in shard_encoder.made_ahead(make, range(9)))
    assert got == [0, 1, 2, 3, 4, 5]


def test_importing_the_stage_loads_no_torch() -> None:
    code = (
        "import sys, stages.encode, stages.sample; print(sorted({'torch', 'numpy', 'PIL', 'pyarrow'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_threads_of_the_config_are_used(made: dict[str, Artifact], tmp_path: Path) -> None:
    torch.set_num_threads(2)
    run(made, tmp_path, CONFIG.model_copy(update={"threads": 1}))
    assert torch.get_num_threads() == 1


def test_conditions_stand_one_after_another_in_the_tables(made: dict[str, Artifact], tmp_path: Path) -> None:
    condition = (
        "class",
        {"kind": "caption", "length": 6, "vocabulary_size": 260},
        {"kind": "low_resolution", "factor": 4},
    )
    config = EncodeWork.model_validate({**CONFIG.model_dump(), "condition": condition})
    maps = make(made["shards"], tmp_path, config.condition[2])
    inputs = {**made, "maps": maps, "cond_tokenizer": tiny_tokenizer(tmp_path, seed=1)}
    artifact = run(inputs, tmp_path, config)
    corpus = TokenCorpus.model_validate(artifact.read_json("tokens.json"))
    assert [(it.kind, it.length, it.size, it.grid) for it in corpus.condition] == [
        ("class", 1, 3, None),
        ("caption", 6, 260, None),
        ("low_resolution", 4, 20, (2, 2)),
    ]
    assert corpus.condition[2].tokenizer == inputs["cond_tokenizer"].digest
    captions = Captions(artifact.local("captions.json").read_text())
    for shard in open_split(maps, "train"):
        table = tables(artifact)[shard.name]
        condition_NC = torch.from_numpy(table.condition_NC).long()
        read = {it.kind: corpus.vocabulary.values(condition_NC, it.kind) for it in corpus.condition}
        assert read["class"][:, 0].tolist() == table.labels.tolist()
        assert read["caption"].tolist() == captions.values(table.captions, 6).tolist()
        assert read["low_resolution"].tolist() == tokens_one_by_one({"tokenizer": inputs["cond_tokenizer"]}, shard)
        assert read["low_resolution"].tolist() != table.tokens_NT.tolist()


def test_long_captions_are_announced_and_missing_ones_refused(made: dict[str, Artifact], tmp_path: Path) -> None:
    config = EncodeWork.model_validate({"condition": {"kind": "caption", "length": 3, "vocabulary_size": 257}})
    assert "100.0% of captions are longer than 3 tokens" in run(made, tmp_path, config).notes["warnings"][0]
    with pytest.raises(DataError, match="none of the training pictures has a caption"):
        run({**made, "shards": tiny_shards(tmp_path, captions=False)}, tmp_path, config)


def test_windows_of_a_picture_become_rows_with_their_coordinates(made: dict[str, Artifact], tmp_path: Path) -> None:
    config = EncodeWork.model_validate({**CONFIG.model_dump(), "condition": "coordinates", "crops": 3, "seed": 5})
    inputs = {**made, "tokenizer": tiny_tokenizer(tmp_path, image_size=8)}
    tokenizer = Tokenizer.load(inputs["tokenizer"].local("model.safetensors").parent)
    artifact = run(inputs, tmp_path, config)
    shard = open_split(made["shards"], "train")[0]
    table, reader = tables(artifact)[shard.name], ShardReader(shard)
    assert table.variants.tolist() == [0, 2, 4] * 5
    places = set()
    for row, (key, variant) in enumerate(zip(table.keys, table.variants, strict=True)):
        window = variant_window(key, int(variant), stored=(16, 16), size=8, seed=5)
        cut = window.cut(decode_image(reader.read_image(row // 3), 3), 8).copy()
        assert table.tokens_NT[row].tolist() == tokenizer.encode(to_model_range(cut[None])).flatten().tolist()
        mean = np.mean([[(window.top + y) * 16 + window.left + x for x in range(8)] for y in range(8)]) / 256
        assert table.condition_NC[row].tolist() == [20 + round(1024 * mean)]
        places.add((window.top, window.left))
    assert len(places) > 5
    assert artifact.read_json("tokens.json")["num_val"] == 6
