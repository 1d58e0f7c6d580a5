"""`whet doctor`: what is installed, what is missing, what this machine can do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from typing import Any

from cyclopts import App

from whet.report.tables import show

app = App(name="doctor", help_epilogue="Example: `whet doctor --json`")

_NEEDED = (
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "numpy",
    "cyclopts",
    "rich",
    "pydantic",
    "jaxtyping",
    "pyyaml",
    "jinja2",
)
_EXTRAS = {
    "matplotlib": "plots: pip install 'whet[plots]'",
    "python-sat": "BeyondBench's puzzles: pip install 'whet[solvers]'",
    "highspy": "BeyondBench's optimisation: pip install 'whet[solvers]'",
    "lm-eval": "python -m whet.lm_eval: pip install 'whet[lm-eval]'",
    "openai": "evaluate --endpoint: pip install 'whet[endpoint]'",
    "pyarrow": "trajectories and other data sets: pip install 'whet[data]'",
    "peft": "LoRA in training recipes: pip install 'whet[lora]'",
    "compressed-tensors": "packed weights: pip install 'whet[compressed]'",
    "diffusers": "LLaDA2Pipeline: pip install 'whet[diffusers]'",
}
_OLDEST = {"torch": (2, 11), "transformers": (5, 17)}


@app.default
def doctor(*, json: bool = False) -> None:
    """Check the installation and the machine; exits with 2 if something needed is missing.

    Parameters
    ----------
    json
        Print JSON instead of a table.
    """
    rows = [_row("python", platform.python_version(), sys.version_info >= (3, 11), "3.11 or newer")]
    for name in _NEEDED:
        version = _version(name)
        oldest = _OLDEST.get(name)
        new_enough = version is not None and (oldest is None or _numbers(version) >= oldest)
        wanted = ".".join(map(str, oldest)) + " or newer" if oldest else "needed"
        rows.append(_row(name, version, new_enough, wanted))
    for name, use in _EXTRAS.items():
        version = _version(name)
        rows.append(
            {"what": name, "found": version or "-", "ok": True, "note": f"extra, for {use}"}
        )
    rows.extend(_machine())
    show(
        "whet doctor",
        {"what": "what", "found": "found", "ok": "fine", "note": "note"},
        rows,
        json=json,
    )
    if not all(row["ok"] for row in rows):
        sys.exit(2)


def _row(what: str, found: str | None, ok: bool, note: str) -> dict[str, Any]:
    return {"what": what, "found": found or "missing", "ok": ok, "note": "" if ok else note}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _machine() -> list[dict[str, Any]]:
    from whet.evaluate.sandbox import namespaces_available
    from whet.measure.machine import machine
    from whet.zoo import names

    if importlib.util.find_spec("torch") is not None:
        import torch  # noqa: F401 - so that the machine knows threads and accelerators
    here = machine()
    free = shutil.disk_usage(".").free / 2**30
    facts = {
        "cpu": f"{here.cpu}, {here.cores} cores",
        "memory": "unknown" if here.memory_gib is None else f"{here.memory_gib:.0f} GiB",
        "accelerator": here.gpu or "none: everything runs on the CPU",
        "free disk here": f"{free:.0f} GiB",
        "code sandbox": namespaces_available() or "namespaces work",
        "zoo": ", ".join(names()) or "no weights in this package",
    }
    return [{"what": k, "found": v, "ok": True, "note": ""} for k, v in facts.items()]
