import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from tests.fit.toy import ACTIONS, ROOT, SETTINGS, Regression, at_step, equal, state_of
from whet.errors import InputError
from whet.fit import checkpoint as checkpoint_
from whet.fit import fit
from whet.fit.stop import stop_on_signal

TIMES = {"tokens_per_second", "seconds_left"}


def train(folder, method=None):
    method = method or Regression()
    fit(method, SETTINGS, run=folder, identity={"toy": 1})
    return method


def child(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.fit.toy", folder, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def saved_step(folder):
    return json.loads((folder / "checkpoint" / "state.json").read_text())["step"]


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return state_of(train(folder)), metrics(folder)


def assert_resumes(folder, straight):
    method = train(folder)
    assert equal(state_of(method), straight[0])
    assert metrics(folder) == straight[1]
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint", "metrics.jsonl"]


@pytest.fixture
def ctrl_c():
    """A suite started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_sigterm_finishes_the_step_saves_it_and_leaves(tmp_path, straight):
    done = child(tmp_path, "SIGTERM", "6")
    assert done.returncode == 143
    assert done.stderr == (
        f"stopped after step 7 of 12, which is saved; the same command resumes from {tmp_path}\n"
    )
    assert done.stdout == "go\n"
    assert saved_step(tmp_path) == 7
    assert_resumes(tmp_path, straight)


def test_ctrl_c_finishes_the_step_saves_it_and_leaves(tmp_path, straight, ctrl_c, capsys):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at_step(Regression(), 6, ACTIONS["SIGINT"]))
    assert capsys.readouterr().err.startswith("stopped after step 7 of 12, which is saved; ")
    assert saved_step(tmp_path) == 7
    assert_resumes(tmp_path, straight)


def test_the_command_line_leaves_with_one_sentence(tmp_path, recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe(fit__steps=100_000, fit__checkpoint_every=100_000)))
    run = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "whet", "train", "masked", "--config", path, "--out", run],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watch = threading.Event()
        for _ in range(1200):
            if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_text():
                break
            watch.wait(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.startswith("stopped after step ")
    assert err.count("\n") == 1
    step = saved_step(run)
    assert f"stopped after step {step} of 100000" in err
    assert not (run / "model").exists()


def test_asked_twice_it_stops_at_once_and_keeps_the_last_checkpoint(
    tmp_path, straight, ctrl_c, capsys
):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, at_step(Regression(), 6, ACTIONS["twice"]))
    assert "stopped in step 7; " in capsys.readouterr().err
    assert saved_step(tmp_path) == 5
    assert_resumes(tmp_path, straight)


def test_a_process_killed_in_a_save_leaves_the_last_good_checkpoint(tmp_path, straight):
    done = child(tmp_path, "killed save", "7")
    assert done.returncode == -signal.SIGKILL
    assert saved_step(tmp_path) == 5
    assert len([p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]) == 1
    assert_resumes(tmp_path, straight)


def test_a_full_disk_ends_in_a_sentence_and_leaves_the_last_good_checkpoint(tmp_path, straight):
    done = child(tmp_path, "full disk", "8")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"whet.errors.InputError: cannot write {tmp_path}/checkpoint: ")
    assert saved_step(tmp_path) == 5
    assert_resumes(tmp_path, straight)


@pytest.mark.parametrize("part", ["save_file", "write_text"])
def test_a_stop_on_a_full_disk_says_so(tmp_path, straight, monkeypatch, part):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    method = at_step(Regression(), 6, ACTIONS["SIGTERM"])
    at_step(method, 6, lambda: monkeypatch.setattr(checkpoint_, part, fail))
    with pytest.raises(InputError, match="checkpoint: No space left on device"):
        train(tmp_path, method)
    monkeypatch.undo()
    assert saved_step(tmp_path) == 5
    assert_resumes(tmp_path, straight)


def test_a_stop_in_the_last_step_leaves_too(tmp_path, straight):
    method = at_step(Regression(), 11, ACTIONS["SIGTERM"])
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, method)
    assert caught.value.code == 143
    assert saved_step(tmp_path) == 12
    assert_resumes(tmp_path, straight)


def test_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signal() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before[1]
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(RuntimeError), stop_on_signal():
        raise RuntimeError
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_patient_process_obeys_no_second_signal():
    with stop_on_signal(patient=True) as stop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            assert stop.signal == number
    with pytest.raises(SystemExit) as caught:
        stop.leave()
    assert caught.value.code == 128 + signal.SIGTERM


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal is None
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_another_thread_trains_without_handlers(tmp_path, straight):
    before = signal.getsignal(signal.SIGTERM)
    done = []
    thread = threading.Thread(target=lambda: done.append(train(tmp_path)))
    thread.start()
    thread.join()
    assert equal(state_of(done[0]), straight[0])
    assert signal.getsignal(signal.SIGTERM) is before
