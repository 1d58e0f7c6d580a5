"""What a Python needs to run in an empty root: its own files, shared libraries, no more."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from whet.errors import OptionError

_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_HIDDEN = ("_ctypes", "_test", "_xxsub", "_interp", "_xxtest", "xxlimited")
"""Extension modules that give access to raw memory or to a second interpreter."""

# Loads every extension module, so that the libraries behind them show among the mapped files.
_ASK = """
import importlib, json, os, sys
names = {f.split(".")[0] for p in sys.path if os.path.isdir(p) for f in os.listdir(p)
         if f.endswith(".so")}
for name in sorted(names):
    if not name.startswith(("_test", "_xx", "xx", "_tkinter", "_ctypes_test")):
        try:
            importlib.import_module(name)
        except ImportError:
            pass
try:
    import ctypes
    ctypes.CDLL("libgcc_s.so.1")  # glibc loads it when a thread ends
except (ImportError, OSError):
    pass
with open("/proc/self/maps") as file:
    mapped = {line[line.index("/"):].strip() for line in file if "/" in line and ".so" in line}
print(json.dumps([sys.path, sorted(mapped)]))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter and what it needs. binds, hidden: absolute paths; links: (path, target)."""

    executable: str
    binds: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    hidden: tuple[str, ...] = ()


def executable() -> str:
    """The interpreter itself, not a link that a virtual environment makes to it."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


@functools.cache
def needs() -> Python:
    """What the running Python needs, found by asking a new process of it (0.3 s, once).

    Errors: OptionError where that process does not answer.
    """
    command = [executable(), "-I", "-S", "-B", "-c", _ASK]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=60, check=True, env={}, stdin=subprocess.DEVNULL
        )
        found, mapped = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise OptionError(f"{command[0]} did not say what it needs to run ({error})") from error
    folders = [os.path.realpath(p) for p in found if os.path.exists(p)]
    folders = [p for p in folders if not any(_within(p, q) for q in folders)]
    libraries = [p for p in mapped if os.path.isfile(p) and not any(_within(p, q) for q in folders)]
    cache = [p for p in ("/etc/ld.so.cache",) if os.path.isfile(p)]
    devices = [p for p in _DEVICES if os.path.exists(p)]
    return Python(
        executable=command[0],
        binds=(command[0], *folders, *libraries, *cache, *devices),
        links=tuple(_links(set(libraries))),
        hidden=tuple(_hidden(folders)),
    )


def _within(path: str, folder: str) -> bool:
    return path != folder and Path(path).is_relative_to(folder)


def _links(libraries: set[str]) -> list[tuple[str, str]]:
    """Links by which the loader finds the libraries: sonames beside them, /lib -> usr/lib."""
    top = [p for p in Path("/").iterdir() if p.is_symlink() and p.name.startswith("lib")]
    folders = {Path(p).parent for p in libraries} | {Path(p) for p in ("/lib", "/lib64")}
    real = {folder.resolve() for folder in folders if folder.is_dir()}
    beside = [p for f in sorted(real) for p in f.iterdir() if p.is_symlink()]
    named = [p for p in beside if str(p.resolve()) in libraries]
    return [(str(p), os.readlink(p)) for p in (*top, *named)]


def _hidden(folders: list[str]) -> list[str]:
    """What is in those folders and not for programs."""
    out = []
    for folder in map(Path, folders):
        if folder.is_dir():
            out += [p for p in folder.iterdir() if p.name in ("site-packages", "dist-packages")]
            out += [
                p
                for p in (*folder.glob("*.so"), *folder.glob("lib-dynload/*.so"))
                if p.name.startswith(_HIDDEN)
            ]
    return sorted({str(p) for p in out})
