"""What fits: whether activations stay in memory, and whether the disk has room for the rest."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from whet.compress.calibrate.capture import Captured
from whet.compress.calibrate.collect import Watch
from whet.compress.calibrate.source import Checkpoint
from whet.errors import InputError, OptionError
from whet.models.roles import Block


def fits(
    model: nn.Module,
    parts: Sequence[Block],
    watch: Watch,
    *,
    batches: Sequence[Mapping[str, Any]],
    sample: tuple[int, Captured],
    checkpoint: Checkpoint | None,
    generations: int,
    max_memory: int | None,
    folder: Path | None,
) -> bool:
    """Whether activations stay in memory.

    sample: number of a batch and how it reached the blocks, from which and their shapes the sizes
    of all follow; a padded one where there is one, since masks are only made of those.
    generations: how often the stream is held while a block is done (inputs; outputs too).
    Errors: OptionError for a `max_memory` that one block and one batch do not fit in, or that
    needs a folder; InputError for too little room on the disk.
    """
    streams, extras = _sizes(batches, *sample)
    sizes = [_block_bytes(model, block, checkpoint) for block in parts]
    block = max(sizes) if checkpoint is not None else 0
    statistics = max(_statistics(model, part, watch) for part in parts)
    batch = 2 * max(streams) + max(extras)
    needed = block + statistics + batch
    everything = block + statistics + max(streams) + generations * sum(streams) + sum(extras)
    keep = max_memory is None or everything <= max_memory
    if max_memory is not None and max_memory < needed:
        raise OptionError(
            f"max_memory={max_memory:,} bytes is too little: one block ({block:,}), its "
            f"statistics ({statistics:,}) and one batch ({batch:,}) need {needed:,}"
        )
    if not keep and folder is None:
        raise OptionError(
            f"max_memory={max_memory:,} bytes does not hold all activations, which need "
            f"{everything:,}: give a folder to off-load them to"
        )
    if folder is not None:
        _check_disk(
            folder,
            2 * sum(streams)
            + (0 if keep else sum(extras))
            + (checkpoint.bytes_of("") if checkpoint is not None else sum(sizes)),
        )
    return keep


def _sizes(
    batches: Sequence[Mapping[str, Any]], number: int, sample: Captured
) -> tuple[list[int], list[int]]:
    """Bytes of every batch's stream and of its other arguments (an upper bound: they repeat)."""
    leads = [next(v for v in b.values() if isinstance(v, Tensor)) for b in batches]
    count, length = leads[number].numel(), leads[number].shape[-1]
    extra = sum(tensor.nbytes for tensor in sample.tensors.values())
    streams = [-(-sample.hidden.nbytes * lead.numel() // count) for lead in leads]
    extras = [
        # Masks grow with the square of the length.
        int(extra * lead.numel() / count * max(1.0, lead.shape[-1] / length))
        for lead in leads
    ]
    return streams, extras


def _block_bytes(model: nn.Module, block: Block, checkpoint: Checkpoint | None) -> int:
    if checkpoint is not None:
        return checkpoint.bytes_of(f"{block.name}.")
    return sum(t.nbytes for t in model.get_submodule(block.name).state_dict().values())


def _statistics(model: nn.Module, block: Block, watch: Watch) -> int:
    collectors = {id(c): c for c in watch(model, block).values()}
    return sum(collector.nbytes for collector in collectors.values())


def _check_disk(folder: Path, needed: int) -> None:
    """Errors: InputError. What an earlier run has written counts as room."""
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    room = shutil.disk_usage(folder).free + there
    if room < needed:
        raise InputError(
            f"{folder}: the disk has room for {room:,} bytes, activations and edited blocks need "
            f"{needed:,}"
        )
