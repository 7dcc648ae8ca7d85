"""A process that the driver has given up, but that still lives and writes: fenced off, it changes nothing."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import StageError
from pipeline.runtime import Rank
from pipeline.storage import Folder
from stages.training.prior import PriorJob, train_prior_loop
from tests.cluster.recording import recorded, rows_of
from tests.stages.training.corpora import make_corpus
from tests.stages.training.gangs import RecordingReporter, processes, rank_of

pytestmark = pytest.mark.thorough


def train(job: PriorJob, records: str, pause: float, rank: Rank, told: str) -> None:
    """Train; leave the message of what ended it."""
    try:
        recorded(partial(train_prior_loop, job), records, pause, rank, RecordingReporter())
        Path(told).write_text("finished")
    except StageError as error:
        Path(told).write_text(str(error))


def test_an_orphan_that_wakes_up_may_not_save_and_the_newer_start_is_untouched(tmp_path):
    from pipeline.config import ClusterConfig
    from stages.models.vocabulary import TokenCorpus
    from stages.prior import PriorConfig
    from tests.stages.test_prior import CONFIG

    tokens = make_corpus(tmp_path)
    corpus = TokenCorpus.model_validate(tokens.read_json("tokens.json"))
    config = PriorConfig.model_validate({**CONFIG.model_dump(), "steps": 40})
    home = Folder.at(tmp_path / "training")
    job = PriorJob(config, corpus, tokens, home, ClusterConfig(checkpoint_every=10, threads=1))
    records, told = tmp_path / "records", tmp_path / "told"
    records.mkdir()
    context = processes()
    orphan = context.Process(target=train, args=(job, str(records), 0.1, rank_of(attempt="000001-000"), str(told)))
    orphan.start()
    while max((row.step for row in rows_of(records)), default=0) < 15:
        assert orphan.is_alive()
        time.sleep(0.02)
    assert orphan.pid is not None
    os.kill(orphan.pid, signal.SIGSTOP)
    newer = context.Process(
        target=train, args=(job, str(records), 0.0, rank_of(attempt="000001-001"), str(tmp_path / "newer"))
    )
    newer.start()
    newer.join(timeout=300)
    assert (tmp_path / "newer").read_text() == "finished"
    committed = home.read_json("LATEST")
    files = {path: path.read_bytes() for path in Path(home.url).rglob("*") if path.is_file()}
    assert json.loads((Path(home.url) / committed[0] / "manifest.json").read_text())["step"] == 40

    os.kill(orphan.pid, signal.SIGCONT)
    orphan.join(timeout=300)
    assert "attempt 000001-000 is superseded by attempt 000001-001" in told.read_text()
    steps = [row.step for row in rows_of(records) if row.attempt == "000001-000"]
    assert 15 < max(steps) < 20, "it went on to its next checkpoint, which was refused"
    assert {path: path.read_bytes() for path in Path(home.url).rglob("*") if path.is_file()} == files
