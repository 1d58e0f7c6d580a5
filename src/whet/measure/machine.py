"""What a number was measured on: the machine, the versions, the commit. Nothing heavy is imported.

torch is asked only where the caller has imported it already; host names, users and paths are left
out, so that a record can be published as it is.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from whet import __version__

PACKAGES = ("torch", "transformers", "numpy")


class Machine(BaseModel):
    """The hardware and system under a measurement.

    cores: CPUs this process may use. threads: torch's intra-operation threads, None where torch
    was not imported. memory_gib: physical memory. gpu: name of the current CUDA device.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cpu: str
    cores: int
    threads: int | None = None
    memory_gib: float | None = None
    gpu: str | None = None
    os: str
    python: str


def machine() -> Machine:
    """This machine as seen by this process. Never fails: what cannot be read is None."""
    torch = sys.modules.get("torch")
    return Machine(
        cpu=_cpu_model(),
        cores=_cores(),
        threads=torch.get_num_threads() if torch is not None else None,
        memory_gib=_memory_gib(),
        gpu=_gpu(torch),
        os=f"{platform.system()} {platform.release()}".strip(),
        python=platform.python_version(),
    )


def versions() -> dict[str, str]:
    """Versions of whet, python and the installed ones of torch, transformers, numpy; no imports."""
    found = {"whet": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(package: Path | None = None) -> str | None:
    """The git commit of the checkout that holds the package, with "-dirty" if its code differs.

    package: the package's folder, whet's own by default. None where the package is not tracked by
    a checkout (an installed wheel, even inside somebody else's repository), or git is missing.
    Only changes inside the package count as dirty, so a fresh record does not taint the next.
    """
    folder = package or Path(__file__).resolve().parents[1]
    if not _git(folder, "ls-files", "--", "."):
        return None
    head = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--", ".")
    if not head or changes is None:
        return None
    return head + ("-dirty" if changes else "")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, stripped; None if it fails. Locks nothing; GIT_DIR and kin are ignored."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=environment,
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    return round(total / 2**30, 1)


def _gpu(torch: Any) -> str | None:
    if torch is None or not torch.cuda.is_available():
        return None
    try:
        return str(torch.cuda.get_device_name())
    except RuntimeError:  # a device that is there but cannot be used (busy, wrong driver)
        return None
