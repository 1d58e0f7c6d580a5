"""Peak memory of a call, and a clean process to measure it in."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from whet.errors import OptionError, WhetError

T = TypeVar("T")

_PROC = Path("/proc/self")
_LIFETIME = (
    "this system cannot reset its peak counter: the peak is that of the process's whole life, "
    "so measure in a fresh process"
)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Memory around one call, in bytes.

    peak_bytes: the largest resident set of the process during the call: every page of it in RAM,
    that is the interpreter, the libraries, weights (copied or memory-mapped) and activations; not
    what is swapped out or on a GPU. before_bytes: the resident set when the call began.
    anonymous_bytes: the part of the resident set after the call that no file backs, None where
    the system does not say. cuda_bytes: the most bytes torch's CUDA allocator had handed out on
    the current device (tensors, not the driver's context or the allocator's reserve), None
    where the process has not started CUDA. source: "vmhwm" is the peak of this call alone;
    "getrusage" is explained in `note`.
    """

    peak_bytes: int
    before_bytes: int | None = None
    anonymous_bytes: int | None = None
    cuda_bytes: int | None = None
    source: Literal["vmhwm", "getrusage"]
    note: str = ""

    @property
    def added_bytes(self) -> int | None:
        """How far the call raised the resident set; None where the start is not known."""
        if self.before_bytes is None:
            return None
        return max(0, self.peak_bytes - self.before_bytes)


def peak_memory(fn: Callable[[], T]) -> tuple[T, Peak]:
    """Call `fn`; return its result and the peak memory of this process while it ran.

    On Linux the kernel's high-water mark (VmHWM) is reset first; elsewhere the peak is that of
    the process so far, and the note says so. Freed memory that the C allocator still holds is
    given back to the system first, where that works (glibc); what earlier calls left allocated
    counts: use `run_isolated` to compare variants to the byte.
    """
    give_back()
    before = _status().get("VmRSS")
    resettable = _reset_peak()
    if (cuda := _cuda()) is not None:
        cuda.synchronize()
        cuda.reset_peak_memory_stats()
    result = fn()
    cuda = _cuda()  # asked again: the call may have started it
    after = _status()
    own = resettable and "VmHWM" in after
    return result, Peak(
        peak_bytes=after["VmHWM"] if own else _lifetime_peak(),
        before_bytes=before,
        anonymous_bytes=after.get("RssAnon"),
        cuda_bytes=int(cuda.max_memory_allocated()) if cuda is not None else None,
        source="vmhwm" if own else "getrusage",
        note="" if own else _LIFETIME,
    )


def run_isolated(
    target: str, kwargs: Mapping[str, Any] | None = None, *, timeout: float | None = None
) -> Any:
    """Call `target` ("module:function") with `kwargs` in a fresh python process.

    The child sees the same interpreter, environment and import path; arguments and result travel
    as JSON; what the child prints is kept for its error and otherwise dropped.
    timeout: seconds, None waits.
    Errors: OptionError where `target` or `kwargs` cannot be sent; WhetError with the end of the
    child's stderr where it fails, is killed or takes too long.
    """
    module, separator, name = target.partition(":")
    if not (module and separator and name):
        raise OptionError(f"target is {target!r}; needed is 'module:function'")
    try:
        request = json.dumps({"module": module, "name": name, "kwargs": dict(kwargs or {})})
    except (TypeError, ValueError) as error:
        raise OptionError(f"arguments for {target} must be JSON: {error}") from error
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from whet.measure.memory import _child; _child()"],
            input=request,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired as error:
        raise WhetError(f"{target} took longer than {timeout} s in its own process") from error
    if done.returncode != 0:
        raise WhetError(f"{target} {_ending(done.returncode)}: {_tail(done.stderr)}")
    return json.loads(done.stdout)


def _child() -> None:
    """The other side of `run_isolated`: a request on stdin, the result alone on stdout."""
    request = json.load(sys.stdin)
    channel = os.dup(1)
    os.dup2(2, 1)  # so that prints, also those of C libraries, cannot mix with the result
    function = getattr(importlib.import_module(request["module"]), request["name"])
    text = json.dumps(function(**request["kwargs"]))
    with os.fdopen(channel, "w", encoding="utf-8") as out:
        out.write(text)


def _ending(code: int) -> str:
    if code < 0:
        killed = " (out of memory?)" if code == -9 else ""
        return f"was killed by signal {-code}{killed} in its own process"
    return f"failed in its own process with exit code {code}"


def _tail(stderr: str, lines: int = 3) -> str:
    kept = [text for line in stderr.splitlines() if (text := line.strip()).strip("^~ ")]
    return " | ".join(kept[-lines:]) or "it said nothing"


def _status() -> dict[str, int]:
    """The sizes in /proc/self/status, in bytes; empty where there is no such file."""
    try:
        text = (_PROC / "status").read_text(encoding="utf-8")
    except OSError:
        return {}
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number, _, unit = value.strip().partition(" ")
        if unit == "kB" and number.isdigit():
            sizes[name] = int(number) * 1024
    return sizes


def free_at_once() -> None:
    """From now on in this process, freed blocks of a mebibyte or more go back to the system.

    glibc otherwise learns to keep them, and how many depends on what came before: GPTQ of a block
    of 113 MB took 1,058 MB so, and 927 without. Other C libraries are left alone.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(-3, 2**20)  # M_MMAP_THRESHOLD
        library.malloc_trim(0)  # else what is free at the heap's end is used first


def give_back() -> None:
    """Return freed memory to the system, so that what a call takes shows as growth."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to trim
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    """Set VmHWM back to the present resident set; False where the kernel does not offer that."""
    try:
        (_PROC / "clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _lifetime_peak() -> int:
    try:
        import resource
    except ImportError as error:  # Windows
        raise WhetError("peak memory cannot be read on this system") from error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _cuda() -> Any:
    """torch.cuda where this process has started it, else None; starts nothing itself."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return torch.cuda
