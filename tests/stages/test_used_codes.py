"""The command that writes a tokenizer without unused codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from pipeline.errors import ConfigError, DataError
from stages.data.tables import write_tokens
from stages.models.quantizers.configs import EMAQuantizerConfig
from stages.models.tokenizer import Tokenizer
from stages.used_codes import main, write_used_codes
from tests.stages.models.quantizers.test_quantizer import make_tokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A tokenizer of 12 codes, and tokens that use 5 of them."""
    for name in ("tokenizer", "tokens"):
        (tmp_path / name).mkdir()
    make_tokenizer(EMAQuantizerConfig(num_codes=12, dim=4)).save(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "manifest.json").write_text(json.dumps({"digest": "3fa9"}))
    for split, codes in (("train", [1, 4, 4, 9]), ("val", [0, 11, 1, 1])):
        write_tokens(
            tmp_path / "tokens" / f"{split}-000000.parquet",
            keys=["a", "b"],
            labels=[0, 0],
            captions=["", ""],
            condition_NC=np.zeros((2, 1), np.int64),
            variants=[0, 0],
            tokens_NT=np.array(codes).reshape(2, 2),
            metadata={"tokenizer": "3fa9", "codebook_size": "12"},
        )
    return tmp_path


def test_codes_of_all_splits_are_kept_in_their_order(corpus: Path) -> None:
    assert write_used_codes(corpus / "tokenizer", corpus / "tokens", corpus / "out") == 5
    before, after = Tokenizer.load(corpus / "tokenizer"), Tokenizer.load(corpus / "out")
    codes = torch.tensor([0, 1, 4, 9, 11])
    assert torch.equal(after.quantize.embedding.weight, before.quantize.embedding.weight[codes])
    tokens_BHW = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]).view(1, 4, 4)
    assert torch.equal(after.decode(tokens_BHW), before.decode(codes[tokens_BHW]))


def test_the_command_says_what_it_wrote_and_what_is_wrong(corpus: Path) -> None:
    command = typer.Typer()
    command.command()(main)
    folders = [f"--{name}={corpus / name}" for name in ("tokenizer", "tokens", "out")]
    done = CliRunner().invoke(command, [*folders, "--unknown", "extra"])
    assert (done.exit_code, done.output) == (0, f"{corpus / 'out'}: 6 codes\n")
    failed = CliRunner().invoke(command, folders)
    assert failed.exit_code == 2
    assert f"{corpus / 'out'} is not empty" in failed.output
    failed = CliRunner().invoke(command, [*folders, "--unknown", "nothing"])
    assert failed.exit_code == 2
    assert "choose nearest, random, extra or the number of a code" in failed.output


def test_tokens_of_another_tokenizer_and_folders_without_tokens_are_refused(corpus: Path) -> None:
    (corpus / "tokenizer" / "manifest.json").write_text(json.dumps({"digest": "77c1"}))
    with pytest.raises(DataError, match=r"train-000000.parquet was made by tokenizer 3fa9, not 77c1"):
        write_used_codes(corpus / "tokenizer", corpus / "tokens", corpus / "out")
    with pytest.raises(DataError, match=r"no tables of tokens"):
        write_used_codes(corpus / "tokenizer", corpus, corpus / "out")
    (corpus / "out").mkdir()
    (corpus / "out" / "something").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        write_used_codes(corpus / "tokenizer", corpus / "tokens", corpus / "out")
