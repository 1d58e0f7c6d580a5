"""Run programs that a model wrote: new process, limits, namespaces, a pass that is hard to forge.

What is a security boundary, where namespaces are available (always, unless the caller allows
otherwise): the program sees an empty root with this Python's own files, read-only, and a small
/tmp; no process, network interface, file or environment variable of the caller; it is a user
without privileges who cannot get any; memory, CPU time, file size, open files, processes and wall
time are bounded, whoever the caller is; everything it started dies with it. What remains between
it and the machine is the kernel: against a program that attacks the kernel use a virtual machine.
Bounds on memory and CPU time are per process, so that all processes of one program together may
use `processes` times as much until the wall time ends.

What is none: without namespaces (`allow_unsandboxed`) the same limits hold but for the number of
processes, and the program may read, write, connect and signal whatever the caller may, its own
memory in /proc included.

What a pass means: the last statement ran and nothing was raised before. The sign is a secret that
the program's process sends after that statement (`_execute`). Exit codes, printed markers, exit
handlers, replaced functions, a closed stdout, walks through frames or `gc`, tracing, bytecode made
by hand or loaded from a file and a search of the program's own files do not forge it. It is a
hurdle, not a proof, as the secret is in the memory of the process that runs the program. What no
runner stops that has tests in the program's own process: an answer that equals everything
(`__eq__`), a test's helper replaced in place, or a memory error of the interpreter that was
provoked on purpose and reads the secret or runs what it likes.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import secrets
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, cast

from whet.errors import OptionError
from whet.evaluate.sandbox import _execute
from whet.evaluate.sandbox._process import Said, supervise
from whet.evaluate.sandbox._python import Python, executable, needs

Verdict = Literal["pass", "fail", "error", "timeout", "memory", "blocked"]

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of one program. Sizes in bytes.

    wall: seconds from the end of the set-up. cpu: seconds of each process. memory: address space
    of each process. disk: all it writes; file_size: of one file. processes: processes and threads
    at once, up to three of the sandbox's own included. output: bytes kept of stdout and of stderr
    each; the rest is read and dropped.
    """

    wall: float = 5.0
    cpu: int = 5
    memory: int = 512 * _MIB
    disk: int = 16 * _MIB
    file_size: int = _MIB
    open_files: int = 64
    processes: int = 16
    output: int = 64 << 10

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                raise OptionError(f"{name} is {value!r}; a program needs at least {least:g}")
            if name != "wall" and not isinstance(value, int):
                raise OptionError(f"{name} is {value!r}; it must be a whole number")


_LEAST = {
    "wall": 0.05,
    "cpu": 1,
    "memory": 64 * _MIB,
    "disk": 4096,
    "file_size": 0,
    "open_files": 8,
    "processes": 4,
    "output": 0,
}
DEFAULTS = Limits()


@dataclass(frozen=True)
class Execution:
    """How a program ended.

    verdict: "pass" (the last statement ran), "fail" (an assertion failed, or it ended before),
    "error" (another exception, or killed by a signal), "timeout" (wall or CPU time), "memory",
    "blocked" (it looked for what the sandbox hides). stdout, stderr: the first `Limits.output`
    bytes of each. seconds: from start to end, set-up included. reason: an exception's name or
    what ended it.
    """

    verdict: Verdict
    stdout: str
    stderr: str
    seconds: float
    reason: str = ""

    def __bool__(self) -> bool:
        return self.verdict == "pass"


def run_code(
    program: str, *, limits: Limits = DEFAULTS, allow_unsandboxed: bool = False
) -> Execution:
    """Run one program in a process, root and namespaces of its own; see the module.

    Errors: OptionError where namespaces are missing and `allow_unsandboxed` is off.
    """
    return _run(program, limits, _walls(allow_unsandboxed))


def run_many(
    programs: Sequence[str],
    *,
    limits: Limits = DEFAULTS,
    workers: int | None = None,
    allow_unsandboxed: bool = False,
) -> list[Execution]:
    """One Execution per program, in order. workers: run at once (default: as many as CPUs).

    Verdicts do not depend on `workers` as long as a program's wall time is not spent waiting for
    a CPU. Errors: as `run_code`, before anything runs; OptionError unless `workers` is positive.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if workers < 1:
        raise OptionError(f"workers is {workers}; allowed is 1 or more")
    enclosed = _walls(allow_unsandboxed)
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda program: _run(program, limits, enclosed), programs))


def _walls(allow_unsandboxed: bool) -> bool:
    """Whether to enclose. Errors: OptionError where that is not possible and not waived."""
    missing = namespaces_available()
    if missing and not allow_unsandboxed:
        raise OptionError(
            f"programs are run only inside namespaces, and here {missing}: "
            "--allow-unsandboxed-code runs them with limits and without walls"
        )
    return not missing


# A program that finds out whether the walls and the bound on processes hold for this caller.
_PROBE = """
import os, socket, time
assert os.getuid() != 0 and os.getppid() == 1, "the program keeps its privileges"
assert not os.path.exists("/proc/self") and os.listdir() == [], "the root is not private"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    assert s.connect_ex(("127.0.0.1", 9)), "the network is reachable"
try:
    for _ in range(64):
        if os.fork() == 0:
            time.sleep(60)
except OSError:
    pass
else:
    assert False, "the number of processes is not bounded"
"""


@functools.cache
def namespaces_available() -> str:
    """Why programs cannot be enclosed on this machine; "" where they can. Tried once, for real."""
    if not hasattr(os, "sched_getaffinity") or not os.path.isdir("/proc/self"):
        return "the system is not Linux or has no /proc"
    try:
        result = _run(_PROBE, Limits(wall=20.0), enclosed=True)
    except OptionError as error:
        return str(error)
    if result.verdict != "pass":
        said = [line for line in result.stderr.splitlines() if line.strip()][-1:]
        return f"a trial ended with {result.verdict} ({(said or [result.reason])[0]})"
    return ""


def _run(program: str, limits: Limits, enclosed: bool) -> Execution:
    ticket, mark = (secrets.token_hex(_execute.TICKET // 2) for _ in range(2))
    python = needs() if enclosed else Python(executable())
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="whet-run-", ignore_cleanup_errors=True) as root:
        said = supervise(
            program.encode(errors="replace"),
            ticket=ticket.encode(),
            mark=mark,
            python=python,
            limits=dataclasses.asdict(limits),
            enclosed=enclosed,
            root=root,
        )
    seconds = time.monotonic() - started
    _check_started(said, mark)
    verdict, reason = _judge(said, ticket, mark, limits)
    out, err = (text.decode(errors="replace") for text in (said.out, said.err))
    return Execution(verdict, out, err, seconds, reason)


def _check_started(said: Said, mark: str) -> None:
    """Errors: OptionError where the program was never started. A program cannot fake this."""
    failed = re.search(rb"%s setup ([^\n]*)" % mark.encode(), said.control)
    if failed is None and f"{mark} ready".encode() in said.control:
        return
    why = failed[1] if failed else said.err[-300:].strip()
    words = why.decode(errors="replace") or ("it took too long" if said.late else "no answer")
    raise OptionError(f"the sandbox did not start: {words}")


def _judge(said: Said, ticket: str, mark: str, limits: Limits) -> tuple[Verdict, str]:
    """The verdict. Only the ticket makes a pass; all else a program may say against itself."""
    if ticket.encode() in said.control:
        return "pass", ""
    told = re.search(rb"^(fail|error|memory|blocked) '?([\w./]+)'?$", said.control, re.M)
    if told is not None:
        word, reason = (part.decode() for part in told.groups())
        return cast(Verdict, word), reason
    ended = re.search(rb"%s end (\d+) (\d+\.\d+)" % mark.encode(), said.control)
    if ended is None and said.late:
        return "timeout", f"wall time over {limits.wall:g} s"
    if ended is None:
        return "error", "how it ended was not reported"
    if not os.WIFSIGNALED(int(ended[1])):
        return "fail", "ended before its last statement"
    if float(ended[2]) >= limits.cpu - 0.1:
        return "timeout", f"CPU time over {limits.cpu} s"
    return "error", f"killed by signal {os.WTERMSIG(int(ended[1]))}"
