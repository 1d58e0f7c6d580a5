"""Load a checkpoint in this process and say how far its output is from what was expected.

`python -m whet.models.edits.reload FOLDER EXPECTED CLASS`, by `save_model`: EXPECTED is a
safetensors file with `ids` and `expected`, CLASS the stock class that was saved.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from whet.models.edits import classes
from whet.models.edits.classes import DENOISER, diffusers
from whet.models.edits.saving import first_output
from whet.models.registry import register


def main(folder: str, path: str, stock: str) -> None:
    """Print {"difference": x}, relative to the largest expected number."""
    transformers.logging.set_verbosity_error()
    register()
    inputs = load_file(path)
    expected = inputs.pop("expected")
    found = first_output(_load(folder, stock), inputs).float()
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        raise SystemExit(f"the output has shape {list(found.shape)} or is not finite")
    difference = (found - expected).abs().max() / expected.abs().max()
    print(json.dumps({"difference": float(difference)}))


def _load(folder: str, stock: str) -> Any:
    if stock == DENOISER:
        name = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["_class_name"]
        kind = getattr(diffusers() if name == stock else classes, name)
        return kind.from_pretrained(folder, torch_dtype=torch.float32)
    auto: Any = getattr(transformers, classes.auto_class(stock))
    model, info = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise SystemExit(f"{problem.replace('_', ' ')}: {sorted(info[problem])[:3]}")
    return model


if __name__ == "__main__":
    main(*sys.argv[1:])
