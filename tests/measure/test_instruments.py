"""Clock, memory, counts, machine: the parts that touch the running process."""

import subprocess
import sys
import time
import types

import numpy as np
import pytest
import torch
from torch import nn

from whet.errors import InputError, OptionError, WhetError
from whet.measure import clock, memory
from whet.measure.count import count_forwards
from whet.measure.machine import commit, machine, versions

MIB = 2**20


def test_clock_measures_seconds():
    with clock.Clock("cpu") as watch:
        time.sleep(0.02)
    assert 0.02 <= watch.seconds < 2


def test_timed_leaves_the_warm_up_out():
    calls = []
    seconds = clock.timed(lambda: calls.append(1), repeats=3, warmup=2)
    assert len(seconds) == 3
    assert len(calls) == 5


def test_variants_take_turns_and_the_first_rotates():
    order = []
    variants = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = clock.alternate(variants, repeats=4, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert {name: len(s) for name, s in seconds.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_slower_variant_is_slower():
    seconds = clock.alternate(
        {"slow": lambda: time.sleep(0.03), "fast": lambda: time.sleep(0.002)}, repeats=5
    )
    ratio, low, high = clock.ratio_interval(seconds["slow"], seconds["fast"])
    assert ratio == clock.ratio_of_medians(seconds["slow"], seconds["fast"])
    assert 1 < low <= ratio <= high


@pytest.mark.parametrize(
    "call",
    [
        lambda: clock.timed(print, repeats=0),
        lambda: clock.timed(print, warmup=-1),
        lambda: clock.alternate({}),
        lambda: clock.ratio_of_medians([], [1.0]),
        lambda: clock.ratio_of_medians([1.0], [0.0]),
        lambda: clock.ratio_interval([1.0, 2.0], [1.0]),
        lambda: clock.ratio_interval([1.0], [1.0]),
    ],
)
def test_clock_refuses_nonsense(call):
    with pytest.raises((OptionError, InputError)):
        call()


class FakeCuda:
    def __init__(self):
        self.waited = []

    def is_available(self):
        return True

    is_initialized = is_available

    def device_count(self):
        return 2

    def synchronize(self, device=None):
        self.waited.append(str(device))

    def reset_peak_memory_stats(self):
        self.waited.append("reset")

    def max_memory_allocated(self):
        return 77


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    backends = types.SimpleNamespace(mps=types.SimpleNamespace(is_available=lambda: False))
    stand_in = types.SimpleNamespace(cuda=fake, device=torch.device, backends=backends)
    monkeypatch.setitem(sys.modules, "torch", stand_in)
    return fake


def test_synchronize_waits_for_the_device_it_is_asked_for(cuda):
    clock.synchronize("cpu")
    assert cuda.waited == []
    clock.synchronize("cuda:1")
    assert cuda.waited == ["cuda:1"]
    clock.synchronize()
    assert cuda.waited == ["cuda:1", "0", "1"]


def test_cuda_memory_is_reset_and_read(cuda):
    _, peak = memory.peak_memory(lambda: cuda.waited.append("ran"))
    assert peak.cuda_bytes == 77
    assert cuda.waited.index("reset") < cuda.waited.index("ran")


@pytest.mark.skipif(not memory._reset_peak(), reason="the kernel cannot reset VmHWM")
def test_peak_memory_sees_what_was_freed_again():
    def work():
        return float(np.ones(64 * MIB // 8).sum())

    result, peak = memory.peak_memory(work)
    assert result == 8 * MIB
    assert peak.source == "vmhwm"
    assert 60 * MIB <= peak.added_bytes <= 120 * MIB
    _, calm = memory.peak_memory(lambda: None)
    assert calm.added_bytes < 30 * MIB  # the earlier peak is forgotten


def test_without_a_resettable_counter_the_note_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_PROC", tmp_path / "none")
    _, peak = memory.peak_memory(lambda: None)
    assert peak.source == "getrusage"
    assert "whole life" in peak.note
    assert peak.peak_bytes > MIB
    assert peak.added_bytes is None


CHILD = """
import os, sys
def double(x):
    print("noise"); os.write(1, b"more noise")
    return {"twice": 2 * x}
def fail(): raise ValueError("no such luck")
def die(): os.kill(os.getpid(), 9)
def odd(): return object()
def sleep():
    import time
    time.sleep(60)
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    (tmp_path / "whet_test_child.py").write_text(CHILD)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "whet_test_child"


def test_run_isolated_returns_the_result_alone(child):
    assert memory.run_isolated(f"{child}:double", {"x": 21}) == {"twice": 42}


@pytest.mark.parametrize(
    ("name", "says"),
    [("fail", "ValueError: no such luck"), ("die", "signal 9"), ("odd", "JSON"), ("gone", "gone")],
)
def test_run_isolated_tells_why_it_failed(child, name, says):
    with pytest.raises(WhetError, match=says) as error:
        memory.run_isolated(f"{child}:{name}")
    assert f"{child}:{name}" in str(error.value)
    assert "\n" not in str(error.value)


def test_run_isolated_stops_waiting(child):
    with pytest.raises(WhetError, match="took longer"):
        memory.run_isolated(f"{child}:sleep", timeout=0.5)


@pytest.mark.parametrize(("target", "kwargs"), [("os", {}), (":x", {}), ("os:getcwd", {"x": {1}})])
def test_run_isolated_refuses_what_it_cannot_send(target, kwargs):
    with pytest.raises(OptionError):
        memory.run_isolated(target, kwargs)


class Net(nn.Module):
    def forward(self, input_ids=None, inputs_embeds=None, fail=False):
        if fail:
            raise RuntimeError
        return input_ids


def test_forwards_rows_and_tokens_are_counted():
    net = Net()
    with count_forwards(net) as count:
        net(torch.zeros(2, 5))
        net(input_ids=torch.zeros(3, 7), inputs_embeds=None)
        net(None, torch.zeros(4, 2, 8))
        net(inputs_embeds=torch.zeros(1, 6, 8))
        net(torch.zeros(9))
    assert (count.calls, count.rows, count.tokens) == (5, 2 + 3 + 4 + 1 + 9, 10 + 21 + 8 + 6 + 9)
    net(torch.zeros(2, 5))
    assert count.calls == 5


def test_the_hook_goes_also_when_the_block_fails():
    net = Net()
    with pytest.raises(RuntimeError), count_forwards(net) as count:
        net(torch.zeros(2, 5), fail=True)
    assert count.calls == 1
    assert not net._forward_pre_hooks
    assert not net._forward_pre_hooks_with_kwargs


def test_counters_nest_and_what_cannot_be_counted_is_refused():
    net = Net()
    with count_forwards(net) as outer:
        with count_forwards(net) as inner:
            net(torch.zeros(2, 5))
        net(torch.zeros(2, 5))
    assert (outer.calls, inner.calls) == (2, 1)
    with count_forwards(net), pytest.raises(InputError, match="cannot count rows"):
        net()


def test_machine_and_versions():
    here = machine()
    assert here.threads == torch.get_num_threads()
    assert here.cpu
    assert here.memory_gib is None or here.memory_gib > 0
    assert versions()["torch"] == torch.__version__


def git(folder, *arguments):
    name = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", folder, *name, *arguments], check=True, capture_output=True)


def test_commit_of_a_checkout(tmp_path, monkeypatch):
    package = tmp_path / "src" / "pkg"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1")
    assert commit(package) is None
    git(tmp_path, "init", "-q")
    assert commit(package) is None  # inside a repository, but not of it
    git(tmp_path, "add", ".")
    assert commit(package) is None  # no commit yet
    git(tmp_path, "commit", "-qm", "x")
    clean = commit(package)
    assert len(clean) == 40
    (tmp_path / "result.json").write_text("{}")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert commit(package) == clean
    (package / "a.py").write_text("2")
    assert commit(package) == f"{clean}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit(package) is None
    assert commit(tmp_path / "missing") is None
