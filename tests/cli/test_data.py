import json

import pytest

from whet.data.trajectories import Trajectories


@pytest.fixture
def arguments(checkpoint, tmp_path):
    """A command that records six short decodings of a random model."""
    return (
        *("data", "trajectories", "--model", checkpoint, "--tasks", "sudoku", "--n", "6"),
        *("--gen-length", "4", "--shard-size", "4", "--out", tmp_path / "out"),
    )


def test_trajectories_are_recorded_and_kept(whet, arguments, tmp_path):
    code, out, err = whet(*arguments, "--decoder", "threshold", "--threshold", "0.3")
    assert code == 0, err
    assert "6 trajectories, 0 of 6 right" in out
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.arrow")}
    assert whet(*arguments, "--decoder", "threshold", "--threshold", "0.3")[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.arrow")} == before


def test_parts_make_a_whole(whet, arguments, tmp_path):
    for k in range(2):
        assert whet(*arguments, "--part", f"{k}/2")[0] == 0
    assert len(Trajectories(tmp_path / "out")) == 6


def test_prompts_come_from_a_file_too(whet, arguments, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"sudoku {k}="}) + "\n" for k in range(3)))
    kept = [a for a in arguments if a not in ("--tasks", "sudoku")]
    code, out, err = whet(*kept, "--input", prompts)
    assert code == 0, err
    assert out.strip().endswith("3 trajectories")
    assert [t.prompt for t in Trajectories(tmp_path / "out")] == [f"sudoku {k}=" for k in range(3)]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--part", "2/2"), "part='2/2' must be K/N"),
        (("--part", "half"), "part='half' must be K/N"),
        (("--input", "nowhere.jsonl"), "give --tasks or --input"),
        (("--n", "0"), "n=0 is too few"),
        (("--shard-size", "0"), "shard_size=0"),
        (("--gen-length", "80"), "context of 64"),
        (("--model", "tiny-ar"), "tiny-ar is autoregressive"),
        (("--decoder", "llada2.1"), "rewrites tokens"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_bad_input(fails, arguments, more, says):
    flags = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    flags |= dict(zip(more[::2], more[1::2], strict=True))
    assert says in fails("data", "trajectories", *(a for pair in flags.items() for a in pair))


def test_a_broken_line_is_named(fails, arguments, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "sudoku 1="}\n{"prompt": 3}\n')
    kept = [a for a in arguments if a not in ("--tasks", "sudoku")]
    assert "prompts.jsonl" in fails(*kept, "--input", prompts)
