"""Telling somebody: after each run its outcome as JSON, to a command's standard input, to a webhook, or to both.

Telling never fails a run, and never holds it up for longer than `notify.limit`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from pipeline.config import StrictModel
from pipeline.redaction import HIDDEN, redacted
from pipeline.telling.deliveries import Delivery, ToCommand, ToWebhook, Undelivered
from pipeline.telling.ending import Ending, Told

log = logging.getLogger(__name__)

Occasion = Literal["always", "changed", "published", "failed"]
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds before the second attempt; doubled before each further one."""
GRACE = 1.0
"""Seconds beyond the limit in which the last attempt is ended properly."""


class NotifyConfig(StrictModel):
    """Who is told how a run ended. Never part of a fingerprint."""

    command: tuple[str, ...] = ()
    """A program and its arguments, started without a shell, that reads the JSON from its standard input. Anything but
    exit code 0 is a failure and is tried again."""
    webhook: SecretStr | None = None
    """URL that the JSON is POSTed to. Logs, manifests and the tracker show it as asterisks; the command line does not,
    so write it into the file, or better into the environment: see `webhook_env`."""
    webhook_env: str | None = None
    """Name of an environment variable that holds the webhook's URL."""
    when: Occasion = "changed"
    """always; changed: whenever a stage ran or the run failed, so not of a run with nothing new; published: when a
    new version was judged, or the run failed; failed: of failures and interruptions alone."""
    limit: float = Field(30, gt=0, le=600)
    """Seconds that all attempts together may take; the run waits no longer."""
    timeout: float = Field(10, gt=0)
    """Seconds after which one attempt is given up and the next one made."""
    attempts: int = Field(5, ge=1, le=100)
    """How often each of them is tried within the limit, with pauses that double from half a second."""

    @field_validator("webhook")
    @classmethod
    def _is_a_url(cls, webhook: SecretStr | None) -> SecretStr | None:
        if webhook is not None:
            check_url(webhook.get_secret_value())
        return webhook

    @field_validator("webhook_env")
    @classmethod
    def _is_the_only_one(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and info.data.get("webhook") is not None:
            raise ValueError("webhook names a URL already: keep one of the two")
        return name

    @field_validator("command")
    @classmethod
    def _names_a_program(cls, command: tuple[str, ...]) -> tuple[str, ...]:
        if command and not command[0].strip():
            raise ValueError("it begins with an empty name: write [program, argument, ...]")
        return command


@contextlib.contextmanager
def telling(
    config: NotifyConfig, *, run: str, workdir: str, resume: str, warn: Callable[[str], None]
) -> Iterator[Ending]:
    """Tell, when the block ends, how it ended. Whatever ended it goes on its way."""
    ending, started = Ending(), time.monotonic()
    error: BaseException | None = None
    try:
        yield ending
    except BaseException as caught:
        error = caught
        raise
    finally:
        seconds = time.monotonic() - started
        notify(config, ending.told(error, run=run, workdir=workdir, resume=resume, seconds=seconds), warn)


def notify(config: NotifyConfig, told: Told, warn: Callable[[str], None]) -> bool:
    """Tell all who want to know; False where somebody was not reached, which is announced and logged.

    Never raises, and returns within `config.limit` and a second: what is then still running is given up.
    """
    if not _concerns(config.when, told):
        return True
    payload = told.payload()
    message = json.dumps(payload, allow_nan=False, default=str).encode()
    deadline = time.monotonic() + config.limit
    given_up = deadline + GRACE
    attempts = [_Attempts(config, f"command {config.command[0]}", ToCommand(config.command))] if config.command else []
    url, missing = _url_of(config)
    attempts += [_Attempts(config, f"webhook {_shown_url(url)}", ToWebhook(url))] if url else []
    threads = [threading.Thread(target=it.run, args=(message, payload["id"], deadline), daemon=True) for it in attempts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, given_up - time.monotonic()))
    failures = [missing] if missing else []
    failures += [it.complaint(config.limit) for it in attempts if not it.done]
    for failure in failures:
        log.warning("%s", failure)
        warn(failure)
    return not failures


def check_url(url: str) -> None:
    """Raise ValueError, which does not repeat it, where a URL is none that can be POSTed to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("it holds no URL of the form https://host/path")


def _concerns(when: Occasion, told: Told) -> bool:
    failed = told.status in ("failed", "interrupted")
    if when == "always" or failed:
        return True
    return told.status == "finished" and (when == "changed" or (when == "published" and told.verdict is not None))


def _url_of(config: NotifyConfig) -> tuple[str | None, str]:
    """The webhook's URL, and what is wrong with it."""
    if config.webhook_env is None:
        return (config.webhook.get_secret_value() if config.webhook else None), ""
    url = os.environ.get(config.webhook_env, "").strip()
    try:
        check_url(url)
    except ValueError as error:
        return None, f"notify: nobody was told, {config.webhook_env} of the environment is not usable: {error}"
    return url, ""


def _shown_url(url: str) -> str:
    """Scheme and host alone: the path of a webhook is its secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}/{HIDDEN}"


@dataclass
class _Attempts:
    """Tries one way of telling until it works, the limit is reached or there is no hope."""

    config: NotifyConfig
    name: str
    deliver: Delivery
    done: bool = False
    tried: int = 0
    reason: str = ""

    def run(self, payload: bytes, message_id: str, deadline: float) -> None:
        """Try; every failure is logged."""
        pause = FIRST_PAUSE
        while self.tried < self.config.attempts and (left := deadline - time.monotonic()) > 0:
            self.tried += 1
            try:
                self.deliver(payload, message_id, min(left, self.config.timeout))
                self.done = True
                return
            except Undelivered as failure:
                self.reason = redacted(str(failure))
                log.info("%s, attempt %d: %s", self.name, self.tried, self.reason)
                if not failure.again or self.tried == self.config.attempts:
                    return
            except Exception as error:  # a thread must not end without a word; the error's own may hold the URL
                self.reason = type(error).__name__
                return
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, LONGEST_PAUSE)

    def complaint(self, limit: float) -> str:
        """Say that nobody was reached, and why."""
        tries = f"{self.tried} attempt{'' if self.tried == 1 else 's'}"
        return f"{self.name} was not told how the run ended, {tries}: {self.reason or f'no answer in {limit:g} s'}"
