"""Saving what was compressed: stock where a stock class can hold it, else as `whet_<family>`.

A folder is written under a temporary name, loaded in a fresh process, its logits are compared,
and only then it gets its name.
"""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from whet._io import atomic_path, write_json
from whet.errors import CheckpointError, InputError
from whet.layers.packed_linear import PackedLinear, quantization_config_of
from whet.models.edits.classes import (
    Edited,
    edited_class,
    edited_config,
    is_denoiser,
    stock_class,
)
from whet.models.edits.structure import Edit, describe, to_json

_TEXTS, _LENGTH = 2, 24


@dataclass(frozen=True)
class Saved:
    """What was written. model_type: of the checkpoint. edits: none where it is a stock one.

    difference: the largest between logits before saving and after loading, relative to the
    largest logit; None where nothing was compared.
    """

    folder: Path
    model_type: str
    edits: tuple[Edit, ...]
    packed: bool
    difference: float | None


def edits_of(model: Any) -> list[Edit]:
    """What this model has that its stock class cannot build. Errors: OptionError."""
    return describe(model, empty_stock(model))


def empty_stock(model: Any) -> Any:
    """An empty stock model of this model's configuration."""
    kind = stock_class(type(model))
    with torch.device("meta"):
        if is_denoiser(kind):
            return kind.from_config({k: v for k, v in model.config.items() if k != "edits"})
        return kind(_stock_config(model))


def save_model(
    model: Any,
    tokenizer: Any,
    folder: str | Path,
    *,
    verify: bool = True,
    dtype: torch.dtype | None = None,
    max_shard_size: str = "5GB",
    tolerance: float = 1e-4,
    overwrite: bool = False,
) -> Saved:
    """Write a language model or encoder that `whet.load` and the Auto classes (with `whet.auto`
    imported) give back; stock checkpoints and packed weights load without whet.

    tokenizer: None leaves it out. dtype: of the stored floats (None: as they are); what was
    packed keeps its own types. verify: load it in a fresh process and compare logits on random
    tokens, in float32.

    Errors: OptionError for a change that no edit can say; InputError for a folder that exists;
    CheckpointError where the saved model loads but computes something else by more than
    `tolerance`, or does not load. Nothing is left behind then.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists: choose another folder")
    edits = edits_of(model)
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True, exist_ok=True)
        write = _write_denoiser if is_denoiser(type(model)) else _write_transformer
        model_type = write(model, edits, temporary, dtype, max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        difference = None
        if verify:
            reference = model
            if dtype is not None:
                reference = copy.deepcopy(model)
                for parameter in reference.parameters():
                    parameter.data = _stored(parameter.data, dtype).to(parameter.dtype)
            difference = reload_difference(reference, temporary)
            if not difference <= tolerance:
                raise CheckpointError(
                    f"the saved model loads, but its logits differ by {difference:.1e} of the "
                    f"largest ({tolerance:g} is allowed): it was not kept"
                )
    return Saved(folder, model_type, tuple(edits), _is_packed(model), difference)


def reload_difference(model: Any, folder: Path) -> float:
    """The largest difference of outputs after loading `folder` in a fresh process, relative.

    Errors: CheckpointError with what the process said where it does not load.
    """
    inputs = some_inputs(model)
    expected = first_output(model, inputs)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "expected.safetensors"
        save_file({**inputs, "expected": expected.float().cpu().contiguous()}, str(path))
        command = [sys.executable, "-m", "whet.models.edits.reload", str(folder), str(path)]
        kind = stock_class(type(model)).__name__
        done = subprocess.run([*command, kind], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointError(f"the saved model does not load in a fresh process: {last}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["difference"])


@torch.no_grad()
def first_output(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits, the last hidden states of a model without a head, or what a denoiser says."""
    training = model.training
    model.eval()
    like = next(p for p in model.parameters() if p.is_floating_point())
    moved = {
        name: t.to(like.device, like.dtype if t.is_floating_point() else None)
        for name, t in inputs.items()
    }
    found: Tensor = model(**moved)[0]
    model.train(training)
    return found


def some_inputs(model: Any) -> dict[str, Tensor]:
    """Random inputs of a model, always the same: tokens, or latents with time and class."""
    generator = torch.Generator().manual_seed(0)
    if is_denoiser(type(model)):
        config = model.config
        side = config.sample_size
        return {
            "hidden_states": torch.randn(
                _TEXTS, config.in_channels, side, side, generator=generator
            ),
            "timestep": torch.randint(1000, (_TEXTS,), generator=generator),
            "class_labels": torch.randint(
                config.num_embeds_ada_norm, (_TEXTS,), generator=generator
            ),
        }
    size = model.get_input_embeddings().weight.shape[0]
    length = min(_LENGTH, getattr(model.config, "max_position_embeddings", _LENGTH))
    return {"input_ids": torch.randint(size, (_TEXTS, length), generator=generator)}


def _stock_config(model: Any) -> Any:
    config = copy.deepcopy(model.config)
    wanted = stock_class(type(model)).config_class
    if type(config) is not wanted:
        config = wanted.from_dict({**config.to_dict(), "model_type": wanted.model_type})
        vars(config).pop("edits", None)
    return config


def _write_transformer(
    model: Any,
    edits: list[Edit],
    folder: Path,
    dtype: torch.dtype | None,
    max_shard_size: str,
) -> str:
    """Configuration and weights in transformers' layout. Gives the model_type."""
    with _as_saved(model, edits):
        state = model.state_dict()
        if dtype is not None:
            scales = [name for name in state if name.endswith("weight_scale")]
            state = {n: t if n in scales else _stored(t, dtype) for n, t in state.items()}
        model.save_pretrained(
            folder,
            state_dict=state,
            max_shard_size=max_shard_size,
            # Experts one by one, as stock loaders join them; with edits, as they lie here.
            save_original_format=not edits,
        )
        model_type: str = model.config.model_type
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
    config["dtype"] = str(dtype or floats[0]).removeprefix("torch.")
    write_json(path, config, indent=2)
    return model_type


def _write_denoiser(
    model: Any,
    edits: list[Edit],
    folder: Path,
    dtype: torch.dtype | None,
    max_shard_size: str,
) -> str:
    """Configuration and weights in diffusers' layout. Gives the class name."""
    model = copy.copy(model) if dtype is None else copy.deepcopy(model).to(dtype)
    if edits:
        model.__class__ = edited_class(type(model))
        model.register_to_config(edits=to_json(edits))
    elif issubclass(type(model), Edited):
        model.__class__ = stock_class(type(model))
        model._internal_dict = type(model.config)(
            {name: value for name, value in model.config.items() if name != "edits"}
        )
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return type(model).__name__


@contextlib.contextmanager
def _as_saved(model: Any, edits: list[Edit]) -> Iterator[None]:
    """The model with the class and configuration that its checkpoint will name."""
    before_class, before_config = type(model), model.config
    quantization = quantization_config_of(model)
    config = _stock_config(model)
    kind = stock_class(before_class)
    if edits:
        kind = edited_class(kind)
        plain = {k: v for k, v in config.to_dict().items() if k != "model_type"}
        config = edited_config(type(config)).from_dict(plain)
        config.edits = to_json(edits)
    if quantization is not None:
        config.quantization_config = quantization
    model.__class__, model.config = kind, config
    try:
        yield
    finally:
        model.__class__, model.config = before_class, before_config


def _is_packed(model: nn.Module) -> bool:
    return any(isinstance(module, PackedLinear) for module in model.modules())


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor as it is written: integers stay what they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
