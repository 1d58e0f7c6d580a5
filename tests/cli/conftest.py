"""A tiny checkpoint on disk, and the command line in this process."""

import pytest
import torch

from whet.cli import main
from whet.models.llada import LLaDAConfig, LLaDAModelLM
from whet.zoo.tokenizer import character_tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A directory in the published layout: random weights, the zoo's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "random-llada"
    tokenizer = character_tokenizer(["sudoku"])
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        mlp_hidden_size=48,
        vocab_size=len(tokenizer) + 6,
        max_sequence_length=64,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        init_std=0.2,
    )
    LLaDAModelLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def whet(capsys):
    """Run `whet ARGS...`; gives (exit code, stdout, stderr)."""

    def run(*arguments):
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def fails(whet):
    """Run a command that must fail with one clear sentence; gives the sentence."""

    def run(*arguments):
        code, _, err = whet(*arguments)
        assert code == 2
        assert err.startswith("error: ")
        assert len(err.strip().splitlines()) == 1, err
        return err

    return run
