import dataclasses

import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError, StageError
from pipeline.runner import Runner, verify
from pipeline.runtime import BoundRuntime, Devices, GangStart, LocalRuntime
from pipeline.stage import select
from pipeline.storage import Folder
from pipeline.workdir import Workdir
from tests.pipeline.toy import ToyConfig, build


def runner(numbers, workdir, **sections) -> Runner:
    config = ToyConfig(folder=str(numbers), **sections)
    return Runner(build(config), Workdir(Folder.at(workdir)))


def ran(outcomes) -> list[str]:
    return [outcome.stage.name for outcome in outcomes if outcome.ran]


def test_a_second_run_does_nothing(numbers, tmp_path):
    first = runner(numbers, tmp_path / "runs").run(["cut", "total"])
    assert ran(first) == ["cut", "total"]
    assert first[1].artifact.metrics == {"total": 20.0}
    assert ran(runner(numbers, tmp_path / "runs").run(["cut", "total"])) == []


def test_one_changed_key_reruns_its_stage_and_what_depends_on_it_and_says_why(numbers, tmp_path):
    runner(numbers, tmp_path / "runs").run(["cut", "total"])
    changed = runner(numbers, tmp_path / "runs", total={"factor": 3.0})
    assert changed.decide(changed.stages[1]).reason == "total.factor 2.0 -> 3.0"
    assert ran(changed.run(["cut", "total"])) == ["total"]
    back = runner(numbers, tmp_path / "runs")
    assert ran(back.run(["cut", "total"])) == [], "the first artifact is still there"
    assert (tmp_path / "runs/total/latest/total.txt").read_text() == "20.0"


def test_an_input_rebuilt_to_the_same_bytes_reruns_nothing_downstream(numbers, tmp_path):
    runner(numbers, tmp_path / "runs").run(["cut", "total"])
    assert ran(runner(numbers, tmp_path / "runs").run(["cut", "total"], force=["cut"])) == ["cut"]


def test_a_new_file_makes_only_its_unit(numbers, tmp_path):
    before = runner(numbers, tmp_path / "runs").run(["cut"])[0].artifact
    (numbers / "5.txt").write_text("50")
    (numbers / "6.txt").write_text("60")
    grown = runner(numbers, tmp_path / "runs")
    assert grown.decide(grown.stages[0]).reason == "source changed"
    after = grown.run(["cut"])[0].artifact
    assert after.notes["units_reused"] == 2
    assert [unit.digest for unit in after.units[:2]] == [unit.digest for unit in before.units[:2]]
    assert len(after.units) == 4


def test_an_unfinished_input_is_an_error_that_says_what_to_run(numbers, tmp_path):
    with pytest.raises(ConfigError, match=r"total needs cut.*--stages cut first, or --stages cut\.\.total"):
        runner(numbers, tmp_path / "runs").run(["total"])


def test_notes_are_no_part_of_the_digest(numbers, tmp_path):
    first = runner(numbers, tmp_path / "a").run(["cut", "total"])[1].artifact
    second = runner(numbers, tmp_path / "b").run(["cut", "total"])[1].artifact
    assert first.digest == second.digest
    assert (tmp_path / "a/total/latest/speed.txt").read_text() != (tmp_path / "b/total/latest/speed.txt").read_text()


def test_the_manifest_says_what_the_stage_cost_and_which_attempt_finished_it(numbers, tmp_path):
    (cut,) = runner(numbers, tmp_path / "runs").run(["cut"])
    notes = cut.artifact.notes
    assert 0 < notes["device_seconds"]["cpu"] <= notes["seconds"] + 0.01, "one process"
    assert notes["attempt"] == 1 and "cores" in notes["machine"]
    (again,) = runner(numbers, tmp_path / "runs").run(["cut"], force=["cut"])
    assert again.artifact.notes["attempt"] == 2
    assert again.artifact.digest == cut.artifact.digest


def test_device_seconds_are_those_of_all_devices_of_a_kind():
    class FourRanks(LocalRuntime):
        def run_gang(self, loop, reporter, attempt):
            return loop()

        def gang_starts(self):
            return next(starts)

        def devices(self, *, units, gpu=True):
            return Devices("gpu", 4) if units is None else Devices("cpu", 2)

    smaller_after_a_death = [GangStart("1-0", 4, 2, 6.0, "a node died"), GangStart("1-1", 2, 1, 14.0, "finished")]
    starts = iter([smaller_after_a_death, [GangStart("1-0", 4, 2, 0.0, "finished")]])
    bound = BoundRuntime(FourRanks(), reporter=None)
    assert bound.run_gang(lambda: "trained") == "trained"
    bound.run_gang(lambda: None)
    assert bound.device_seconds == {"gpu": 52.0}


def test_verify_names_what_was_damaged(numbers, tmp_path):
    outcomes = runner(numbers, tmp_path / "runs").run(["cut", "total"])
    artifacts = [outcome.artifact for outcome in outcomes]
    verify(artifacts)
    path = artifacts[0].local("cut-000001.txt")
    path.write_text("9\n9")
    artifacts[1].local("total.txt").unlink()
    with pytest.raises(StageError) as caught:
        verify(artifacts)
    assert "cut-000001.txt differs" in str(caught.value)
    assert "total.txt is missing" in str(caught.value)


def test_stages_are_chosen_by_name_list_and_range(numbers, tmp_path):
    stages = runner(numbers, tmp_path).stages
    assert select(stages, "all") == ["cut", "total"]
    assert select(stages, "total,cut") == ["cut", "total"]
    assert select(stages, "cut..total") == ["cut", "total"]
    with pytest.raises(ConfigError, match="no stage 'sum': choose from cut, total"):
        select(stages, "sum")
    with pytest.raises(ConfigError, match=r"did you mean cut\.\.total"):
        select(stages, "total..cut")


def test_config_mistakes_name_key_value_and_remedy(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("total: {factr: 2}\ncut: {size: many}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(ToyConfig, path)
    assert "total.factr: unknown key; did you mean factor?" in str(caught.value)
    assert "cut.size" in str(caught.value)
    assert "'many'" in str(caught.value)
    path.write_text("total: {factor: 2}\n")
    assert load_config(ToyConfig, path, ["total.factor=3e-4", "cut.size=7"]).total.factor == 3e-4
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_config(ToyConfig, path, ["total.factor"])
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(ToyConfig, tmp_path / "absent.yaml")


def test_a_kept_stage_stays_although_its_input_changed_but_not_when_its_config_did(numbers, tmp_path):
    def keeping(**sections) -> Runner:
        made = runner(numbers, tmp_path / "runs", **sections)
        made.stages = [made.stages[0], dataclasses.replace(made.stages[1], policy="keep")]
        return made

    keeping().run(["cut", "total"])
    (numbers / "5.txt").write_text("50")
    grown = keeping()
    assert ran(grown.run(["cut", "total"])) == ["cut"]
    assert grown.decide(grown.stages[1]).reason.startswith("kept")
    assert ran(keeping(total={"factor": 3.0}).run(["cut", "total"])) == ["total"]
