import os
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from stages.models import inception_weights
from stages.models.inception_weights import NAMES, find_inception, inception_inputs, weights_cache


def test_weights_that_this_user_may_not_read_are_none_or_a_message(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights_cache().mkdir(parents=True)
    place = weights_cache() / NAMES[0]
    place.write_bytes(b"weights")
    assert find_inception("auto") == place
    monkeypatch.setattr(inception_weights.os, "access", lambda path, mode: mode == os.F_OK)  # root may read everything
    assert find_inception("auto") is None and inception_inputs("auto") == {}
    with pytest.raises(
        ConfigError, match=r"evaluate.inception: .* may not be read as a file: give this user permission"
    ):
        find_inception(str(place))
