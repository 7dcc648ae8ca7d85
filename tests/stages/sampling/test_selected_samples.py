"""The sample stage with selection and requests: what is kept, what is drawn again, the same bytes by any worker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artifacts import Artifact
from pipeline.errors import ConfigError, DataError
from pipeline.runner import run_stage
from pipeline.runtime import LocalRuntime
from pipeline.stage import Stage
from stages.data.images import decode_image, to_model_range
from stages.data.shards import ShardReader, open_split
from stages.data.tables import read_table
from stages.models.scorers.description import ClassifierDescription
from stages.models.scorers.heads import ClassifierHead
from stages.sample import SampleConfig, sample
from stages.sampling.picture_scorers import Classifier, SeeingScorer
from stages.sampling.requests import request_inputs
from stages.sampling.selection_config import scorer_inputs
from tests.stages.tiny import tiny_prior, tiny_tokenizer


class TwoWorkersBackwards(LocalRuntime):
    """Two workers that take turns at the units, the last one first."""

    def map_units(self, store: Any, make_worker: Any, units: Any, reporter: Any, *, gpu: bool = True) -> Any:
        workers = [make_worker("cpu"), make_worker("cpu")]
        for n, unit in enumerate(reversed(units)):
            yield store.make(unit, workers[n % 2])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    workdir = tmp_path_factory.mktemp("selected")
    tokenizer = tiny_tokenizer(workdir)
    return {"tokenizer": tokenizer, "prior": tiny_prior(workdir, tokenizer)}


def run(made: dict[str, Artifact], workdir: Path, runtime: LocalRuntime | None = None, **keys: Any) -> Artifact:
    plain = {"num_samples": 6, "samples_per_unit": 4, "batch_size": 5, "seed": 11}
    config = SampleConfig.model_validate({**plain, **keys})
    inputs = {**made, **request_inputs(config.requests), **scorer_inputs(config.select)}
    stage = Stage("sample", sample, config, inputs)  # type: ignore[arg-type]
    return run_stage(stage, inputs, str(workdir), runtime or LocalRuntime())


def table(artifact: Artifact) -> dict[str, list[Any]]:
    parts = [read_table(artifact.local(entry.path)) for _, entry in artifact.unit_files(".parquet")]
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def pictures(artifact: Artifact) -> list[np.ndarray]:
    readers = [ShardReader(shard) for shard in open_split(artifact, "sample")]
    return [decode_image(reader.read_image(i), 3) for reader in readers for i in range(len(reader))]


LIKELIHOOD = {"kind": "likelihood", "candidates": 7}


def test_the_likeliest_of_the_candidates_is_kept(made: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(made, tmp_path, select=LIKELIHOOD)
    rows, first = table(artifact), table(run(made, tmp_path))
    assert rows["id"] == first["id"] == list(range(6))
    assert rows["label"] == first["label"]
    for row in range(6):
        scores = rows["candidate_scores"][row]
        assert len(set(scores)) > 3
        assert rows["score"][row] == max(scores)
        assert rows["candidate"][row] == np.argmax(scores)
        assert rows["score"][row] == rows["log_likelihood"][row] / 4
        assert scores[0] == first["log_likelihood"][row] / 4, "candidate 0 is the picture drawn without selection"
    assert artifact.metrics["score"] == pytest.approx(np.mean(rows["score"]))
    assert artifact.metrics["score_of_all"] == pytest.approx(np.mean(rows["candidate_scores"]))
    assert artifact.metrics["kept_share"] == pytest.approx(1 / 7)
    assert "accepted" in rows and "accepted_share" not in artifact.metrics


def test_selected_samples_do_not_depend_on_workers_or_units(made: dict[str, Artifact], tmp_path: Path) -> None:
    one = run(made, tmp_path / "one", select=LIKELIHOOD)
    two = run(made, tmp_path / "two", TwoWorkersBackwards(), select=LIKELIHOOD)
    assert one.digest == two.digest
    other = run(made, tmp_path / "one", select=LIKELIHOOD, samples_per_unit=6)
    assert table(one)["score"] == table(other)["score"]
    assert np.array_equal(pictures(one), pictures(other))


def test_more_selected_samples_draw_only_the_new_ones(made: dict[str, Artifact], tmp_path: Path) -> None:
    before = run(made, tmp_path, select=LIKELIHOOD, num_samples=8)
    after = run(made, tmp_path, select=LIKELIHOOD, num_samples=12)
    assert after.notes["units_reused"] == 2
    assert after.units[:2] == before.units
    assert run(made, tmp_path, select={**LIKELIHOOD, "candidates": 8}).notes["units_reused"] == 0


def test_the_best_three_of_a_condition_stand_in_a_row(made: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(made, tmp_path, select={**LIKELIHOOD, "keep": 3}, samples_per_unit=6, num_samples=11)
    rows = table(artifact)
    assert rows["label"] == [0] * 3 + [1] * 3 + [2] * 3 + [0] * 2
    assert rows["noise_id"] == [0] * 3 + [3] * 3 + [6] * 3 + [9] * 2
    for group in (0, 3, 6):
        scores = rows["candidate_scores"][group]
        assert rows["score"][group : group + 3] == sorted(scores, reverse=True)[:3]
        assert len(set(rows["candidate"][group : group + 3])) == 3
    assert artifact.metrics["kept_share"] == pytest.approx(11 / 28)
    summary = artifact.read_json("samples.json")
    assert summary["classes"] == {"cats": 5, "dogs": 3, "owls": 3}
    with pytest.raises(ValueError, match=r"samples_per_unit 4 is not a multiple of select\.keep 3, .*: set .* to 6"):
        run(made, tmp_path, select={**LIKELIHOOD, "keep": 3})


def test_a_score_to_reach_is_counted_and_never_leaves_samples_out(made: dict[str, Artifact], tmp_path: Path) -> None:
    scores = np.array(table(run(made, tmp_path, select=LIKELIHOOD))["candidate_scores"])
    enough = float(np.sort(scores.max(1))[2])  # two of the six bests stay below
    artifact = run(made, tmp_path, select={**LIKELIHOOD, "min_score": enough})
    assert artifact.metrics["kept_below"] == 2
    assert artifact.metrics["accepted_share"] == pytest.approx((scores >= enough).mean())
    assert table(artifact)["accepted"] == [score >= enough for score in table(artifact)["score"]]
    assert len(pictures(artifact)) == 6


def write_classifier(folder: Path, seed: int = 0, classes: tuple[str, ...] = ("owls", "cats", "dogs")) -> str:
    torch.manual_seed(seed)
    description = ClassifierDescription(classes=classes, feature_size=32)
    head = ClassifierHead(description)
    torch.nn.init.normal_(head.head.weight, std=0.3)
    Classifier(description, head).save(folder)
    return str(folder)


def test_a_classifier_scores_the_class_that_was_asked_for(made: dict[str, Artifact], tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "scorer")
    artifact = run(made, tmp_path, select={"kind": "classifier", "path": path, "candidates": 4})
    rows = table(artifact)
    scorer = SeeingScorer.load(tmp_path / "scorer")
    x_NCHW = to_model_range(np.stack(pictures(artifact)))
    expected = scorer.scores(x_NCHW, rows["class"])
    np.testing.assert_allclose(rows["score"], expected, rtol=1e-4)
    assert rows["score"] == [max(scores) for scores in rows["candidate_scores"]]
    assert 0 < min(min(scores) for scores in rows["candidate_scores"]) < 1
    grid = Image.open(artifact.local("grid.png"))
    assert grid.width > 2 * 2 * 64 and grid.height > 3 * (64 + 15)


def test_another_scorer_draws_anew_and_the_same_one_elsewhere_does_not(
    made: dict[str, Artifact], tmp_path: Path
) -> None:
    def reused(path: str) -> int:
        selection = {"kind": "classifier", "path": path, "candidates": 2}
        return int(run(made, tmp_path / "runs", select=selection).notes["units_reused"])

    assert reused(write_classifier(tmp_path / "a")) == 0
    assert reused(write_classifier(tmp_path / "moved")) == 2
    assert reused(write_classifier(tmp_path / "other", seed=1)) == 0


def test_scorers_that_cannot_score_are_refused(made: dict[str, Artifact], tmp_path: Path) -> None:
    path = write_classifier(tmp_path / "a", classes=("cats", "dogs"))
    with pytest.raises(ConfigError, match="knows no owls; it knows cats, dogs: train one on this run"):
        run(made, tmp_path, select={"kind": "classifier", "path": path})
    with pytest.raises(ConfigError, match=r"holds a classifier: set sample\.select\.kind=classifier"):
        run(made, tmp_path, select={"kind": "two_tower", "path": path})
    with pytest.raises(ConfigError, match=r"nothing holds no scorer .*stages\.scorer"):
        run(made, tmp_path, select={"kind": "classifier", "path": str(tmp_path / "nothing")})
    untold = tiny_prior(tmp_path, made["tokenizer"], classes=())
    with pytest.raises(ConfigError, match=r"these samples have none .*select by likelihood"):
        run({**made, "prior": untold}, tmp_path, select={"kind": "classifier", "path": path})


ROWS = "id,label,seed,count\na,owls,7,3\nb,cats,,2\nc,dogs,7,1\n"


def requests(tmp_path: Path, text: str = ROWS) -> str:
    (tmp_path / "requests.csv").write_text(text)
    return str(tmp_path / "requests.csv")


def test_requests_are_drawn_with_their_own_seeds_and_classes(made: dict[str, Artifact], tmp_path: Path) -> None:
    artifact = run(made, tmp_path, requests=requests(tmp_path))
    rows = table(artifact)
    assert rows["key"] == ["a-0", "a-1", "a-2", "b-0", "b-1", "c-0"]
    assert rows["request"] == ["a"] * 3 + ["b"] * 2 + ["c"]
    assert rows["class"] == ["owls"] * 3 + ["cats"] * 2 + ["dogs"]
    assert rows["seed"] == [7, 7, 7, 11, 11, 7]
    assert artifact.metrics["samples"] == 6
    summary = artifact.read_json("samples.json")
    assert (summary["num_samples"], summary["classes"]) == (6, {"owls": 3, "cats": 2, "dogs": 1})
    by_number = table(run(made, tmp_path, classes=("owls",), seed=7, num_samples=4))
    assert np.array_equal(rows["tokens"][:3], by_number["tokens"][:3]), "a seed means the same in a request"


def test_new_requests_draw_only_the_new_pictures(made: dict[str, Artifact], tmp_path: Path) -> None:
    before = run(made, tmp_path, requests=requests(tmp_path), samples_per_unit=3)
    more = requests(tmp_path, ROWS + "d,cats,,2\n")
    after = run(made, tmp_path, requests=more, samples_per_unit=3)
    assert after.notes["units_reused"] == 2
    assert after.units[:2] == before.units
    assert table(after)["key"][6:] == ["d-0", "d-1"]


def test_requests_give_the_same_bytes_by_one_or_two_workers(made: dict[str, Artifact], tmp_path: Path) -> None:
    path = requests(tmp_path)
    one = run(made, tmp_path / "one", requests=path, select={**LIKELIHOOD, "keep": 2})
    two = run(made, tmp_path / "two", TwoWorkersBackwards(), requests=path, select={**LIKELIHOOD, "keep": 2})
    assert one.digest == two.digest
    rows = table(one)
    assert rows["noise_id"][0] == rows["noise_id"][1] == 0 and rows["noise_id"][2] == 2
    assert rows["score"][0] > rows["score"][1]


def test_a_bad_request_ends_with_the_code_of_bad_data(made: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"requests.csv, line 2: the prior knows no class 'owl'; did you mean owls\?"):
        run(made, tmp_path, requests=requests(tmp_path, "id,label\na,owl\n"))
    with pytest.raises(ValueError, match="requests says what is drawn: leave classes and captions out"):
        run(made, tmp_path, requests=requests(tmp_path), classes=("cats",))


def test_requests_of_another_size_are_units_of_their_own_drawn_through_the_window(
    made: dict[str, Artifact], tmp_path: Path
) -> None:
    text = "id,label,size,count\na,owls,,2\nb,cats,16x32,3\nc,dogs,16x16,2\nd,dogs,16x32,1\n"
    artifact = run(made, tmp_path, requests=requests(tmp_path, text), samples_per_unit=3)
    assert [unit.name for unit in artifact.units] == [
        "sample-000000",
        "sample-000001",
        "sample-16x32-000000",
        "sample-16x32-000001",
    ]
    shapes = [picture.shape[:2] for picture in pictures(artifact)]
    assert shapes == [(16, 16)] * 4 + [(16, 32)] * 4
    large = read_table(artifact.local("sample-16x32-000000.parquet"))
    assert (large["key"], set(large["height"]), set(large["width"])) == (["b-0", "b-1", "b-2"], {16}, {32})
    log_likelihood = sum(unit.counts["log_likelihood"] for unit in artifact.units)
    assert artifact.metrics["bits_per_token"] == pytest.approx(-log_likelihood / np.log(2) / (4 * 4 + 4 * 8))
    more = requests(tmp_path, text + "e,owls,16x32,2\n")
    assert run(made, tmp_path, requests=more, samples_per_unit=3).notes["units_reused"] == 3
