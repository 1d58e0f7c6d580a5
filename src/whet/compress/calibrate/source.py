"""Weights from a checkpoint folder, a block at a time, and back into shards.

The model is built without weights (`empty_model`); a block's tensors are mapped from the files,
in the names and layouts that transformers' own loader would give them (experts that are stored
one by one become the fused tensors of the model), and dropped again when the block is done.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from whet._io import atomic_path, write_json
from whet.compress.calibrate.store import write_tensors
from whet.errors import CheckpointError, OptionError
from whet.layers.packed_linear import quantization_config_of
from whet.measure.memory import free_at_once
from whet.models.loading import read_config, read_shards
from whet.models.roles import Block

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SAMPLE = 2**20


def empty_model(model_class: Any, config: Any) -> Any:
    """A model whose parameters are on the meta device and whose buffers are real, in eval mode.

    Buffers that no checkpoint stores (rotary frequencies, positions) are made by the model's own
    code, which meta tensors would stop. The hook is torch's, for as long as the model is built.
    """

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)

    free_at_once()  # every parameter is real for a moment
    handle = register_module_parameter_registration_hook(to_meta)
    try:
        return model_class(config).eval()
    finally:
        handle.remove()


def open_model(folder: str | Path) -> Any:
    """The empty language model of a checkpoint folder's configuration.

    Encoders and bare trunks: `empty_model` with their own class. Errors: CheckpointError.
    """
    return empty_model(*read_config(Path(folder)))


@dataclass
class _Group:
    """Stored tensors that make one or more of the model's, and what does it (None: nothing)."""

    converter: Any = None
    keys: list[tuple[str, str]] = field(default_factory=list)  # stored name, source pattern


class Checkpoint:
    """The tensors of a folder under a model's own names.

    dtype: what floats become; None keeps the stored one.
    Errors: CheckpointError for missing, truncated or pickled shards, or tensors that the model
    needs and the files lack.
    """

    def __init__(self, folder: Path, model: Any, *, dtype: torch.dtype | None = None) -> None:
        self.folder, self.dtype = folder, dtype
        self._model = model
        self._shapes, _ = read_shards(folder)
        self._files = _files(folder, self._shapes)
        self._sizes = self._measure()
        self._groups = self._plan()
        self.tied: set[str] = set(getattr(model, "all_tied_weights_keys", None) or {})
        parameters = {name for name, _ in model.named_parameters()}
        gone = sorted(parameters - set(self._targets()) - self.tied)
        if gone:
            more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
            raise CheckpointError(f"{folder}: tensor {gone[0]}{more} missing")

    def _plan(self) -> dict[str, _Group]:
        """Groups by the (first) tensor that they make."""
        converters, renamings, prefix = _conversions(self._model)
        by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
        wanted = self._model.state_dict()
        groups: dict[str, _Group] = {}
        for key in sorted(self._files, key=_natural):
            name, pattern = _rename(key, renamings, converters, prefix, wanted)
            if name not in wanted and key in wanted:
                name, pattern = key, None
            if name not in wanted:
                continue  # as transformers does: buffers of old checkpoints, unused heads
            if pattern is None:
                groups[name] = _Group(None, [(key, key)])
            else:
                group = groups.setdefault(name, _Group(by_pattern[pattern]))
                group.keys.append((key, pattern))
        return groups

    def _targets(self) -> Iterator[str]:
        for name, group in self._groups.items():
            patterns = group.converter.target_patterns if group.converter else [""]
            yield from (name.replace(patterns[0], other) if other else name for other in patterns)

    def bytes_of(self, prefix: str) -> int:
        """Size of everything whose name begins with `prefix`, in memory."""
        total = 0
        for name, group in self._groups.items():
            if name.startswith(prefix):
                total += sum(self._sizes[key] for key, _ in group.keys)
        return total

    def _measure(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for path, keys in _by_file(self._files, self._files).items():
            with safe_open(path, framework="pt") as file:
                for key in keys:
                    # None of it is read: an empty slice says what type it is.
                    stored = file.get_slice(key)[:0].dtype if self._shapes[key] else torch.float64
                    final = self.dtype if self.dtype and stored.is_floating_point else stored
                    found[key] = math.prod(self._shapes[key]) * final.itemsize
        return found

    def read(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name begins with `prefix`; on the host, mapped where nothing changes them.

        Errors: CheckpointError for stored tensors that do not join.
        """
        groups = {name: g for name, g in self._groups.items() if name.startswith(prefix)}
        stored = self._tensors([key for group in groups.values() for key, _ in group.keys])
        found: dict[str, Tensor] = {}
        for name, group in groups.items():
            found |= self._make(name, group, stored)
        return found

    def _make(self, name: str, group: _Group, stored: dict[str, Tensor]) -> dict[str, Tensor]:
        if group.converter is None:
            return {name: stored[group.keys[0][0]]}
        converter = copy.deepcopy(group.converter)
        for key, pattern in group.keys:
            converter.add_tensor(name, key, pattern, stored.pop(key))
        try:
            made = converter.convert(name, model=self._model, config=self._model.config)
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
            raise CheckpointError(f"{self.folder}: {name} cannot be put together ({why})") from None
        return {key: value[0] if isinstance(value, list) else value for key, value in made.items()}

    def _tensors(self, keys: list[str]) -> dict[str, Tensor]:
        """Stored tensors. Each call maps the files anew: pages that an edit has written into
        would live as long as the map."""
        found: dict[str, Tensor] = {}
        for path, own in _by_file(self._files, keys).items():
            with safe_open(path, framework="pt") as file:
                for key in own:
                    tensor = file.get_tensor(key)
                    floating = self.dtype is not None and tensor.is_floating_point()
                    found[key] = tensor.to(self.dtype) if floating else tensor
        return found

    def fingerprint(self) -> str:
        """sha256 of every shard's size, first and last MiB: tells checkpoints apart cheaply."""
        found = hashlib.sha256()
        for path in sorted(set(self._files.values())):
            size = path.stat().st_size
            with path.open("rb") as file:
                found.update(f"{path.name} {size} ".encode() + file.read(_SAMPLE))
                file.seek(max(0, size - _SAMPLE))
                found.update(file.read(_SAMPLE))
        return found.hexdigest()

    def finish(self, out: Path, blocks: list[Block], shards: list[Path]) -> None:
        """Write what lies outside the blocks, the index and the other files beside the shards.

        With them `out` is a checkpoint that loads like any other, where the configuration says
        what the edits did to shapes; of packed weights it does.
        """
        places: dict[str, str] = {}
        for path in shards:
            with safe_open(path, framework="pt") as file:
                places |= dict.fromkeys(file.keys(), path.name)
        outside = [n for n in self._groups if not any(n.startswith(f"{b.name}.") for b in blocks)]
        for number, name in enumerate(n for n in outside if n not in self.tied):
            path = out / f"model-outside-{number:05}.safetensors"
            group = self._groups[name]
            tensors = self._make(name, group, self._tensors([key for key, _ in group.keys]))
            write_tensors(path, tensors)
            places |= dict.fromkeys(tensors, path.name)
        total = sum((out / name).stat().st_size for name in set(places.values()))
        for path in sorted(self.folder.iterdir()):
            kept = path.suffix in (".json", ".txt", ".model", ".jinja")
            if kept and not path.name.endswith(".index.json"):
                with atomic_path(out / path.name) as temporary:
                    shutil.copyfile(path, temporary)
        config = copy.deepcopy(self._model.config)
        config.dtype = self.dtype or config.dtype
        packed = quantization_config_of(self._model)
        if packed is not None:
            config.quantization_config = packed
        config.save_pretrained(out)
        write_json(out / _INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _files(folder: Path, names: Mapping[str, Any]) -> dict[str, Path]:
    index = folder / _INDEX
    if not index.is_file():
        return dict.fromkeys(names, folder / _SINGLE)
    stored = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return {name: folder / stored[name] for name in names if name in stored}


def _by_file(files: Mapping[str, Path], keys: Iterable[str]) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for key in keys:
        found.setdefault(files[key], []).append(key)
    return found


def _conversions(model: Any) -> tuple[list[Any], list[Any], str | None]:
    """(converters, renamings, prefix of the base model) of transformers' loader."""
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    if not isinstance(model, PreTrainedModel):
        return [], [], None
    every = get_model_conversion_mapping(model)
    return (
        [c for c in every if isinstance(c, WeightConverter)],
        [c for c in every if isinstance(c, WeightRenaming)],
        model.base_model_prefix,
    )


def _rename(
    key: str, renamings: list[Any], converters: list[Any], prefix: str | None, wanted: Any
) -> tuple[str, str | None]:
    from transformers.core_model_loading import rename_source_key

    name, pattern = rename_source_key(key, renamings, converters, prefix, wanted)
    return str(name), pattern


def _natural(key: str) -> list[tuple[bool, int, str]]:
    """Numbers in names by value: expert 10 after expert 9."""
    parts = key.split(".")
    return [(p.isdecimal(), int(p) if p.isdecimal() else 0, p) for p in parts]


def fill(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Give a module its tensors, by full name. prefix: the module's own name.

    Errors: CheckpointError where one is missing, or is of another shape than the model's.
    """
    own = {f"{prefix}.{name}" for name in module.state_dict()}
    needed = {f"{prefix}.{name}" for name, _ in module.named_parameters()}
    if odd := sorted((needed - set(tensors)) | (set(tensors) - own)):
        where = "the model" if odd[0] in own else "the file"
        raise CheckpointError(f"tensor {odd[0]} is in {where} alone")
    for full, tensor in tensors.items():
        path, _, name = full.removeprefix(f"{prefix}.").rpartition(".")
        owner = module.get_submodule(path)
        place: dict[str, Any] = owner._buffers
        if name in owner._parameters:
            place = owner._parameters
        old = place[name]
        if old.shape != tensor.shape:
            raise CheckpointError(
                f"tensor {full} has shape {tuple(tensor.shape)}, the model's {tuple(old.shape)}"
            )
        if isinstance(old, nn.Parameter):
            trained = old.requires_grad and tensor.is_floating_point()
            place[name] = nn.Parameter(tensor, requires_grad=trained)
        else:
            place[name] = tensor


def drop(module: nn.Module) -> None:
    """Put what a module has in its shard on the meta device: shapes stay, the memory goes."""
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None and not old.is_meta:
                part._parameters[name] = nn.Parameter(old.to("meta"), old.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                part._buffers[name] = buffer.to("meta")


@contextlib.contextmanager
def on_demand(model: nn.Module, checkpoint: Checkpoint, blocks: list[Block]) -> Iterator[None]:
    """Weights outside the blocks arrive when their module is called, and all go at the end.

    So a pass that ends at the blocks reads embeddings and not the head.
    """
    inside = tuple(f"{block.name}." for block in blocks)
    before: list[tuple[nn.Module, str, nn.Parameter]] = []

    def arrive(module: nn.Module, name: str) -> None:
        for own, parameter in list(module._parameters.items()):
            full = f"{name}.{own}" if name else own
            if parameter is not None and parameter.is_meta:
                before.append((module, own, parameter))
                tensor = checkpoint.read(full)[full]
                module._parameters[own] = nn.Parameter(tensor, requires_grad=False)

    handles = [
        module.register_forward_pre_hook(lambda m, _, name=name: arrive(m, name))
        for name, module in model.named_modules()
        if not f"{name}.".startswith(inside)
        and any(p is not None for p in module._parameters.values())
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, name, parameter in before:
            module._parameters[name] = parameter  # the same object: tied ones stay tied


def restore_block(module: nn.Module, block: Block, tensors: Mapping[str, Tensor]) -> None:
    """Give a block the tensors of its shard, of a run that was stopped, copied out of the file.

    For edits that keep names and shapes. Errors: OptionError for others, which need `restore`.
    """
    try:
        fill(module, block.name, {name: tensor.clone() for name, tensor in tensors.items()})
    except CheckpointError as error:
        raise OptionError(
            f"block {block.index} cannot be put back as it was edited ({error}): give `restore`, "
            "which rebuilds an edited block from its tensors"
        ) from error


def save_block(path: Path, module: nn.Module, block: Block) -> None:
    """Write a block's tensors under their full names, whole or not at all. Errors: InputError."""
    write_tensors(path, {f"{block.name}.{n}": t for n, t in module.state_dict().items()})
