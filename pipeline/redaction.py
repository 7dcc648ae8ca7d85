"""Secrets stay out of what is written: found in URLs and in the environment, replaced on their way to any file."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from typing import Any

from pipeline.config import flatten, strings_in
from pipeline.errors import ConfigError

HIDDEN = "***"

_USERINFO = re.compile(r"(?<=://)[^\s/?#'\"@]+(?=@)")
_SECRET = r"(?:token|secret|passw|pwd|key|sig|credential|auth)"  # noqa: S105
_QUERY = re.compile(rf"([?&;][\w.-]*{_SECRET}[\w.-]*=)[^\s&;#'\"]+", re.IGNORECASE)
_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
_PLACES = re.compile(r"(_PATH|_FILE|_DIR|_MODE|_URI|_URL)$", re.IGNORECASE)
SHORTEST = 8
"""Letters below which a value in the environment is taken for a setting, not for a secret."""


def redacted(text: str) -> str:
    """Return the text without what logs people in: user names and passwords and keys in URLs, and the values of
    environment variables that are named for a secret."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _NAME.search(name) and not _PLACES.search(name):
            text = text.replace(value, HIDDEN)
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _USERINFO.sub(HIDDEN, text))


def refuse_secrets(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError naming a key whose value holds a secret: manifests would keep it, and fingerprints change with
    it."""
    for key, value in flatten(settings).items():
        for text in strings_in(value):
            if _USERINFO.search(text) or _QUERY.search(text):
                raise ConfigError(
                    f"{key}: its URL holds a name, password or key ({redacted(text)}), which manifests would keep: "
                    "take it out and give it through the environment, e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks too, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or lines of a record."""
        return redacted(super().format(record))
