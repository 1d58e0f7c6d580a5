import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.fit.together import LONG, ROWS, Uneven, train
from tests.fit.toy import ROOT, Regression, at_step, equal, state_of
from whet.errors import CheckpointError, OptionError
from whet.fit.distributed import World, current_world, process_group, shard


def start(folder, scenario, processes=2):
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "tests.fit.together"),
            *(folder, scenario),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(folder, scenario):
    process = start(folder, scenario)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(2)]


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_curve(folder, alone):
    lines, wanted = metrics(folder), metrics(alone)
    assert [line["step"] for line in lines] == list(range(1, 51))
    for one, two in zip(lines, wanted, strict=True):
        assert one.keys() == two.keys()
        for name in one.keys() - {"tokens_per_second", "seconds_left"}:
            assert one[name] == pytest.approx(two[name], rel=1e-9, abs=1e-12)


def assert_close(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    train(folder / "plain", Regression(LONG, ROWS))
    train(folder / "uneven", Uneven(LONG, ROWS))
    return folder


def test_two_processes_give_the_curve_of_one(tmp_path, alone):
    said = together(tmp_path, "copies")
    for name in ("plain", "again", "accumulated", "copied", "uneven"):
        wanted = alone / ("uneven" if name == "uneven" else "plain")
        assert_curve(tmp_path / name, wanted)
        assert_close(
            *(
                load_file(f / "checkpoint" / "tensors.safetensors")
                for f in (tmp_path / name, wanted)
            )
        )
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [
            "checkpoint",
            "metrics.jsonl",
        ]
    one, two = (
        load_file(tmp_path / name / "checkpoint" / "tensors.safetensors")
        for name in ("plain", "again")
    )
    assert equal(one, two)
    for one in said:
        assert one["rounds"] == "run_rounds works in one process: start it without torchrun"
        assert one["nan"].startswith("the loss of 'model' is nan in step 1: stopped before")
        assert "in step 1: stopped before" in one["row"]
        assert "cut into 1 parts instead of 2" in one["small"]
        assert "SimpleNamespace has no `split`" in one["whole"]
        assert "50 steps for one process and 0 for another" in one["own"]
    assert "No space left on device" in said[0]["full"]
    assert said[1]["full"].endswith("checkpoint: another process failed")
    assert sorted(p.name for p in (tmp_path / "full").iterdir()) == ["metrics.jsonl"]
    assert "(row 3 is nan)" in said[1]["row"]
    # The whole batch is kept, not the part of the process that writes.
    stored = json.loads((tmp_path / "nan" / "nonfinite.json").read_text())
    assert stored["batch"][0] == Regression(LONG, ROWS).batch(0)[0].tolist()


def test_a_model_cut_up_over_two_processes_gives_the_curve_of_one(tmp_path, alone):
    died = at_step(Regression(LONG, ROWS), 33, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "from-one", died)
    said = together(tmp_path, "shards")
    for name in ("plain", "from-one", "again"):
        assert_curve(tmp_path / name, alone / "plain")
    wanted = train(alone / "plain", Regression(LONG, ROWS))
    weights = torch.load(tmp_path / "weights.pt")
    assert_close(weights, dict(wanted.players["model"].module.state_dict()))
    # What two processes left at step 20 (cut up), and at the end, one process takes up.
    assert json.loads((tmp_path / "to-one" / "checkpoint" / "state.json").read_text())["step"] == 20
    assert_close(state_of(train(tmp_path / "to-one", Regression(LONG, ROWS))), state_of(wanted))
    assert_curve(tmp_path / "to-one", alone / "plain")
    assert_close(state_of(train(tmp_path / "plain", Regression(LONG, ROWS))), state_of(wanted))
    for one in said:
        assert one["nan"].startswith("the loss of 'model' is nan in step 1: stopped before")
        assert "No space left on device" in one["full"]
        assert "\n" not in one["full"]
        assert "cannot write" in one["no folder"]
    full = tmp_path / "full"
    assert json.loads((full / "checkpoint" / "state.json").read_text())["step"] == 20
    assert sorted(p.name for p in full.iterdir()) == ["checkpoint", "metrics.jsonl"]
    assert_close(state_of(train(full, Regression(LONG, ROWS))), state_of(wanted))
    # Parts hold no pickle; without one of them the checkpoint is refused, not read as zeros.
    parts = sorted((tmp_path / "plain" / "checkpoint" / "parts").iterdir())
    assert [p.suffix for p in parts] == [".safetensors"] * 2
    whole = parts[0].read_bytes()
    for damage in (lambda: parts[0].write_bytes(whole[:-9]), parts[0].unlink):
        damage()
        with pytest.raises(CheckpointError, match="damaged checkpoint") as caught:
            train(tmp_path / "plain", Regression(LONG, ROWS))
        assert "\n" not in str(caught.value)


def test_sigterm_to_torchrun_stops_all_processes_at_the_same_step(tmp_path):
    process = start(tmp_path, "stopping")
    deadline = time.monotonic() + 120
    while process.poll() is None and not (tmp_path / "step").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    said = [line for line in err.splitlines() if line.startswith("stopped after step ")]
    assert len(said) == 1, err
    step = json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["step"]
    assert said[0].startswith(f"stopped after step {step} of 1000000, which is saved; ")
    assert not list((tmp_path / "run").glob("*.tmp"))
    # One process on its own, stopped there, is where they are.
    short = LONG.model_copy(update={"steps": 10**6, "checkpoint_every": 10**6})
    method = Regression(short, ROWS)
    method.after_step = lambda k: os.kill(os.getpid(), signal.SIGTERM) if k + 1 == step else None
    with pytest.raises(SystemExit):
        train(tmp_path / "alone", method, short)
    assert_close(
        *(load_file(tmp_path / n / "checkpoint" / "tensors.safetensors") for n in ("run", "alone"))
    )


def test_without_torchrun_there_is_one_process():
    with process_group() as world:
        assert world == current_world() == World(0, 1)
        assert world.main
        assert world.sum([1.5]) == [1.5]
        assert world.largest(3) == 3
        assert world.share("x") == "x"
    with pytest.raises(OptionError, match="start them with torchrun"):
        shard(torch.nn.Linear(2, 2))
