"""A run's log: a file of its own in the workdir, bounded in size."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path

from pipeline.errors import UserError
from pipeline.redaction import RedactingFormatter
from pipeline.storage import Folder, explaining, retries
from pipeline.storage.beside import kept_beside

LOG_BYTES, LOG_PARTS = 8 * 2**20, 4
"""A run's log, and that of each of Ray's processes, takes no more than so many files of so many bytes."""


def open_log(home: Folder) -> Path:
    """Send the logs of this run to a file of its own; a workdir behind a URL gets a copy when the run ends.

    A long log goes on in a new file, and only its newest parts stay; --gc removes those of old runs.
    """
    folder = kept_beside(home).path / "logs"
    path = folder / time.strftime("run-%Y%m%d-%H%M%S.log")
    with explaining(str(path)):
        folder.mkdir(parents=True, exist_ok=True)
        file = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_PARTS - 1)
    file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[file], level=logging.WARNING, force=True)
    for room in ("pipeline", "stages"):
        logging.getLogger(room).setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    logging.raiseExceptions = False  # a log that cannot be written must not bury the message of why
    return path


@contextlib.contextmanager
def copied(log_path: Path, home: Folder) -> Iterator[None]:
    """After the block, however it ended, copy the log into a workdir behind a URL if that answers."""
    try:
        yield
    finally:
        if not home.is_local:
            with contextlib.suppress(UserError, OSError), retries.patience_of(10):
                home.write(f"logs/{log_path.name}", log_path.read_bytes())
