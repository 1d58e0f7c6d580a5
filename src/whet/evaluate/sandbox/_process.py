"""One run: start the scripts, feed the program, drain what they say, kill and reap all of them."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.evaluate.sandbox._python import Python

_HERE = Path(__file__).parent
_SCRIPT_INSIDE = "/_execute.py"
_OPTIONS = ("-I", "-S", "-B", "-X", "utf8", "-X", "frozen_modules=off")
_CONTROL_KEPT = 1 << 16
_START = 60.0  # seconds a busy machine may take to set the walls up; they do not count
_LINGER = 1.0  # seconds a program that has passed may take to print what it still holds


@dataclass(frozen=True)
class Said:
    """What came out of a run, and whether its time was over before it ended."""

    control: bytes
    out: bytes
    err: bytes
    late: bool


def supervise(
    program: bytes,
    *,
    ticket: bytes,
    mark: str,
    python: Python,
    limits: Mapping[str, Any],
    enclosed: bool,
    root: str,
) -> Said:
    """Run a program until it ends or its time is over; nothing of it is left behind.

    ticket: what a program that came to its end sends. mark: before each record of the scripts.
    limits: the fields of `Limits`. root: an empty folder, which becomes its root (or its working
    folder, where it is not enclosed).
    """
    script = str(_HERE / "_execute.py")
    inside = _SCRIPT_INSIDE if enclosed else script
    control, theirs = os.pipe()
    settings = {
        **limits,
        "enclosed": enclosed,
        "root": root,
        "control": theirs,
        "mark": mark,
        "caller": os.getpid(),
        "binds": [*((path, path) for path in python.binds), (script, inside)],
        "links": python.links,
        "hidden": python.hidden,
        "command": [python.executable, *_OPTIONS, inside],
    }
    first = [python.executable, "-I", "-S", "-B", str(_HERE / "_enclose.py")]
    try:
        process = subprocess.Popen(
            [*first, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin"},
            cwd="/",
            pass_fds=(theirs,),
            start_new_session=True,
            bufsize=0,
        )
    except BaseException:
        os.close(control)
        raise
    finally:
        os.close(theirs)
    try:
        return _converse(process, control, (ticket, program), mark, limits)
    finally:
        # Not reaped before, so the id is still its own. Namespaces die with their first process.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(control)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _converse(
    process: subprocess.Popen[bytes],
    control: int,
    given: tuple[bytes, bytes],
    mark: str,
    limits: Mapping[str, Any],
) -> Said:
    """Write ticket and program, read three pipes until the run has ended or its time is over.

    given: ticket and program. The wall time counts from the scripts' first record on.
    """
    pipes = [p for p in (process.stdin, process.stdout, process.stderr) if p is not None]
    stdin, stdout, stderr = (pipe.fileno() for pipe in pipes)
    kept = {control: bytearray(), stdout: bytearray(), stderr: bytearray()}
    room = {control: _CONTROL_KEPT, stdout: limits["output"], stderr: limits["output"]}
    ready, end = f"{mark} ready".encode(), f"{mark} end ".encode()
    deadline = time.monotonic() + _START
    ticket, rest = given[0], memoryview(b"".join(given))
    started = passed = late = False
    with selectors.DefaultSelector() as selector:
        for fd in (stdin, *kept):
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_WRITE if fd == stdin else selectors.EVENT_READ)
        while set(selector.get_map()) - {stdin} and end not in kept[control]:
            left = deadline - time.monotonic()
            if left <= 0:
                late = True
                break
            for key, _ in selector.select(left):
                if key.fd != stdin:
                    if not _drain(key.fd, kept[key.fd], room[key.fd]):
                        selector.unregister(key.fd)
                    continue
                rest = _feed(stdin, rest)
                if not rest:
                    selector.unregister(stdin)
                    pipes[0].close()
            if not started and ready in kept[control]:
                started, deadline = True, time.monotonic() + limits["wall"]
            if not passed and ticket in kept[control]:
                passed, deadline = True, min(deadline, time.monotonic() + _LINGER)
    for fd, text in kept.items():  # what was written before the end is in the pipes
        while len(text) < room[fd] and _drain(fd, text, room[fd], otherwise=False):
            continue
    return Said(bytes(kept[control]), bytes(kept[stdout]), bytes(kept[stderr]), late)


def _feed(fd: int, rest: memoryview) -> memoryview:
    """What is still to be written; nothing where nobody reads."""
    try:
        return rest[os.write(fd, rest[: 1 << 16]) :]
    except BlockingIOError:
        return rest
    except BrokenPipeError:
        return rest[:0]


def _drain(fd: int, kept: bytearray, room: int, otherwise: bool = True) -> bool:
    """Read once and keep what there is room for. False at the end of the file.

    otherwise: the answer where nothing is there now.
    """
    try:
        read = os.read(fd, 1 << 16)
    except BlockingIOError:
        return otherwise
    kept += read[: room - len(kept)]
    return bool(read)
