import pytest
import yaml

from tests.evaluate.test_endpoint import Server, chat, send
from whet.dlm.nap.data import PathSets

TASK = "modsum:count=3,modulus=10"
SOLVED = ("data", "nap", "--solver", "--tasks", TASK, "--n", "6", "--shard-size", "4")


def test_solvers_work_problems_out(whet, tmp_path):
    code, out, err = whet(*SOLVED, "--out", tmp_path / "a", "--paths", "2")
    assert code == 0, err
    assert "6 path sets, 12 of 12 paths right" in out
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("*.arrow")}
    assert len(before) == 2
    assert whet(*SOLVED, "--out", tmp_path / "a", "--paths", "2")[0] == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").glob("*.arrow")} == before


def test_parts_and_seeds(whet, tmp_path):
    for k in range(2):
        assert whet(*SOLVED, "--out", tmp_path / "parts", "--part", f"{k}/2")[0] == 0
    assert whet(*SOLVED, "--out", tmp_path / "whole")[0] == 0
    assert whet(*SOLVED, "--out", tmp_path / "other", "--seed", "1")[0] == 0
    parts, whole, other = (list(PathSets(tmp_path / n)) for n in ("parts", "whole", "other"))
    assert parts == whole != other


@pytest.mark.parametrize("decoder", ["low-confidence", "threshold"])
def test_a_local_model_writes_paths_that_differ(whet, checkpoint, tmp_path, decoder):
    command = ("data", "nap", "--model", checkpoint, "--tasks", TASK, "--n", "3", "--out")
    flags = ("--max-new-tokens", "6", "--decoder", decoder)
    code, out, err = whet(*command, tmp_path / "a", *flags)
    assert code == 0, err
    assert "of 9 paths right" in out
    assert whet(*command, tmp_path / "b", *flags)[0] == 0
    one, two = (list(PathSets(tmp_path / n, least_right=0)) for n in "ab")
    assert one == two
    assert len({p for s in one for p in s.paths}) > 3


def test_an_endpoint_writes_paths(whet, monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    server = Server(lambda number, payload, handler: send(handler, chat(f"so it is {number}")))
    try:
        code, out, err = whet(
            *("data", "nap", "--model", "far", "--endpoint", server.url, "--tasks", TASK),
            *("--n", "4", "--paths", "2", "--out", tmp_path, "--batch-size", "1"),
        )
    finally:
        server.close()
    assert code == 0, err
    assert "4 path sets" in out
    assert len(server.asked) == 8
    assert {(p["model"], p["temperature"], p["max_tokens"]) for p in server.asked} == {
        ("far", 1.0, 330)
    }
    assert len({p["seed"] for p in server.asked}) == 8
    assert [s.paths for s in PathSets(tmp_path, least_right=0)] == [
        [f"so it is {2 * k}", f"so it is {2 * k + 1}"] for k in range(4)
    ]


def test_what_was_built_can_be_trained_on(whet, tmp_path):
    assert whet(*SOLVED, "--out", tmp_path / "sets")[0] == 0
    model = {"model_type": "llada", "d_model": 16, "n_heads": 2, "n_layers": 1}
    recipe = {
        "method": "nap",
        "model": {**model, "mlp_hidden_size": 16, "vocab_size": 120, "max_sequence_length": 96},
        "data": {"folder": str(tmp_path / "sets"), "path_length": 14, "summary_length": 2},
        "fit": {"steps": 2, "learning_rate": 0.01, "warmup": 1},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    code, out, err = whet(
        "train", "nap", "--config", tmp_path / "r.yaml", "--out", tmp_path / "run"
    )
    assert code == 0, err
    slots = "".join(f"<think {k}><|mask|><|mask|></think {k}>" for k in (1, 2, 3))
    text = f"modsum a1b2c3%10={slots}<summary><|mask|></summary>"
    code, out, err = whet(
        "generate", "--model", tmp_path / "run" / "model", "--decoder", "nap", "--infill", text
    )
    assert code == 0, err
    assert "<think 3>" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "give either --model"),
        (("--solver", "--model", "tiny-ar"), "give either --model"),
        (("--solver", "--endpoint", "http://x"), "--endpoint needs --model"),
        (("--solver", "--tasks", "sort"), "task 'sort' has no workings of its own"),
        (("--solver", "--paths", "9"), "paths=9 must be between 1 and 6"),
        (("--solver", "--n", "0"), "n=0 is too few"),
        (("--solver", "--temperature", "0.5"), "--temperature: a solver has no such setting"),
        (("--solver", "--decoder", "soar"), "--decoder: a solver has no such setting"),
        (("--solver", "--part", "2/2"), "part='2/2' must be K/N"),
        (("--model", "tiny-ar", "--max-new-tokens", "0"), "max_new_tokens=0"),
        (("--model", "tiny-ar", "--decoder", "soar"), "tiny-ar is autoregressive"),
        (("--model", "tiny-ar", "--temperature", "0"), "temperature=0 must be above 0"),
        (("--model", "m", "--endpoint", "nowhere"), "endpoint='nowhere' is no address"),
        (("--model", "nothing"), "unknown model 'nothing'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_bad_input(fails, tmp_path, arguments, says):
    assert says in fails("data", "nap", "--out", tmp_path, *arguments)
