"""The engine: block by block, observe, edit, run on. See the package for what it promises."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whet._io import check_writable, claim_folder, write_json
from whet.compress.calibrate.budget import fits
from whet.compress.calibrate.capture import Captured, capture, counted_tokens, digest
from whet.compress.calibrate.collect import Collector, Watch, watch_inputs, watch_nothing
from whet.compress.calibrate.passes import BlockRun, Feed, Phase, observe, run_edited
from whet.compress.calibrate.source import (
    Checkpoint,
    drop,
    fill,
    on_demand,
    restore_block,
    save_block,
)
from whet.compress.calibrate.store import Store, read_tensors
from whet.errors import CheckpointError, InputError, OptionError
from whet.measure.memory import free_at_once, give_back
from whet.models.roles import Block, blocks

# In a folder of their own, which a checkpoint's other files do not meet when it is a source again.
_CLAIM, _STATE = Path("calibration", "claim.json"), Path("calibration", "state.json")
_ACTIVATIONS = Path("calibration", "activations")
_SAMPLE = 256

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """`done` of `total` batches (edits, saves) of one phase of one block of `blocks`."""

    block: int
    blocks: int
    phase: Phase
    done: int
    total: int


Edit = Callable[[BlockRun], Mapping[str, Any] | None]
Restore = Callable[[nn.Module, Block, Mapping[str, Tensor]], None]


@dataclass(frozen=True)
class Calibration:
    """What a run gives. reports: of each block, as JSON; tokens: how many counted.

    shards: the edited blocks' files, where there is a folder. off_loaded: whether activations lay
    in files instead of memory.
    """

    reports: tuple[Mapping[str, Any], ...]
    tokens: int
    shards: tuple[Path, ...]
    off_loaded: bool


def calibrate(
    model: nn.Module,
    batches: Sequence[Batch],
    edit: Edit,
    *,
    watch: Watch = watch_inputs,
    propagate_error: bool = True,
    source: str | Path | None = None,
    dtype: torch.dtype | None = None,
    folder: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
    max_memory: int | None = None,
    device: torch.device | str | None = None,
    restore: Restore = restore_block,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Calibration:
    """Edit a model block by block, each from statistics of its inputs.

    batches: arguments of the model's forward pass, `attention_mask` [B, T] with 0 at padding; none
    for edits that look at weights alone (`watch_nothing`).
    edit: changes a block and may give a report (JSON). It must not change how many blocks there
    are, nor anything outside its block that earlier blocks read.
    propagate_error: whether a block sees what the edited blocks before it give, or what the
    original ones gave (which saves one of two passes).
    source: a checkpoint folder that the weights come from, a block at a time; the model is then
    an empty one (`open_model`), ends empty, and `folder` becomes a checkpoint of the edited
    model. dtype: what stored floats become. Without a source the model is edited in place.
    folder: where edited blocks and activations are kept, so that a run that was killed goes on
    at the block where it was, to the same bits; started with another model, other batches or
    another `identity` (the method, its settings, its seed: JSON) it is refused.
    max_memory: bytes for a streamed block, statistics and activations; over it activations go to
    files in `folder`. What modules and the edit need for their own work is not counted.
    device: where blocks are run and edited; by default where they are, or the CPU.
    restore: gives a finished block its edited tensors when a run goes on.

    Errors: OptionError for a model of no known family, too little `max_memory`, or options that
    do not go together; InputError for batches that cannot be used, or too little room on the
    disk, before work begins; CheckpointError for a damaged source or folder; NonFiniteError with
    block, module and batch.
    """
    run = _Run(
        model=model,
        batches=batches,
        edit=edit,
        watch=watch,
        propagate=propagate_error,
        source=None if source is None else Path(source),
        dtype=dtype,
        folder=None if folder is None else Path(folder),
        identity=dict(identity or {}),
        max_memory=max_memory,
        device=None if device is None else torch.device(device),
        restore=restore,
        on_progress=on_progress,
    )
    training = model.training
    model.eval()
    try:
        return run.go()
    finally:
        model.train(training)


@dataclass(kw_only=True)
class _Run:
    model: nn.Module
    batches: Sequence[Batch]
    edit: Edit
    watch: Watch
    propagate: bool
    source: Path | None
    dtype: torch.dtype | None
    folder: Path | None
    identity: dict[str, Any]
    max_memory: int | None
    device: torch.device | None
    restore: Restore
    on_progress: Callable[[Progress], None]

    def go(self) -> Calibration:
        self._check_options()
        self.parts = blocks(self.model)
        self.masks = [counted_tokens(batch, n) for n, batch in enumerate(self.batches)]
        self.checkpoint = (
            None if self.source is None else Checkpoint(self.source, self.model, dtype=self.dtype)
        )
        if self.checkpoint is not None:
            free_at_once()
        self.place = self._place()
        finished, reports = self._claim()
        self.keep = not len(self.batches) or self._fits()
        feed = self._prepare(finished)
        for index in range(finished, len(self.parts)):
            reports.append(self._block(index, feed))
            self._commit(index, reports)
            feed.streams.remove(f"stream-{index}")
        self._finish()
        shards = self._shards() if self.folder is not None else []
        return Calibration(tuple(reports), feed.tokens, tuple(shards), not self.keep)

    # --- before the first block

    def _fits(self) -> bool:
        number = next((n for n, mask in enumerate(self.masks) if mask is not None), 0)
        with self._outside():
            sample = self._capture(number)
        return fits(
            self.model,
            self.parts,
            self.watch,
            batches=self.batches,
            sample=(number, sample),
            checkpoint=self.checkpoint,
            generations=1 if self.propagate else 2,
            max_memory=self.max_memory,
            folder=self.folder,
        )

    def _check_options(self) -> None:
        if not len(self.batches) and self.watch is not watch_nothing:
            raise InputError("no batches were given: calibration needs at least one")
        for number, batch in enumerate(self.batches):
            if not any(isinstance(value, Tensor) for value in batch.values()):
                raise InputError(f"batch {number} holds no tensor: input_ids are needed")
        if self.source is None and self.dtype is not None:
            raise OptionError(f"dtype={self.dtype} is for weights that come from a source")
        empty = any(parameter.is_meta for parameter in self.model.parameters())
        if self.source is None:
            if empty:
                raise OptionError("the model has no weights: give the source they come from")
            return
        if not empty:
            raise OptionError("with a source the model must be an empty one: use open_model")
        if self.folder is None:
            raise OptionError("with a source a folder is needed, which the edited blocks go to")
        if self.folder.resolve() == self.source.resolve():
            raise OptionError(f"folder={self.folder} is the source itself: choose another one")

    def _place(self) -> torch.device:
        if self.device is not None:
            return self.device
        if self.checkpoint is not None:
            return torch.device("cpu")
        return next(self.model.get_submodule(self.parts[0].name).parameters()).device

    def _claim(self) -> tuple[int, list[Mapping[str, Any]]]:
        """How many blocks are finished, and their reports."""
        if self.folder is None:
            return 0, []
        check_writable((self.folder / _CLAIM).parent)
        weights = self.checkpoint.fingerprint() if self.checkpoint else _sampled(self.model)
        tensors = [t for b in self.batches for t in b.values() if isinstance(t, Tensor)]
        what = {
            "identity": self.identity,
            "weights": weights,
            "batches": digest(*tensors),
            "blocks": len(self.parts),
            "propagate_error": self.propagate,
            "dtype": str(self.dtype),
        }
        claim_folder(self.folder / _CLAIM, what)
        for left_over in self.folder.glob(".*.tmp"):
            left_over.unlink()
        path = self.folder / _STATE
        if not path.is_file():
            return 0, []
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            return int(state["finished"]), list(state["reports"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged ({error!r})") from error

    def _outside(self) -> contextlib.AbstractContextManager[None]:
        """Weights outside the blocks, for as long as batches are captured."""
        if self.checkpoint is None:
            return contextlib.nullcontext()
        return on_demand(self.model, self.checkpoint, self.parts)

    def _capture(self, number: int) -> Captured:
        batch = {key: value for key, value in self.batches[number].items() if value is not None}
        if self.checkpoint is not None:
            return capture(self.model, self.parts, batch)
        inside = tuple(f"{block.name}." for block in self.parts)
        named = self.model.named_parameters()
        outside = next((p for name, p in named if not name.startswith(inside)), None)
        device = torch.device("cpu") if outside is None else outside.device
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
        return capture(self.model, self.parts, moved)

    def _prepare(self, finished: int) -> Feed:
        """What the first block to do needs; in memory, finished blocks get their edits back."""
        activations = None if self.folder is None else self.folder / _ACTIVATIONS
        feed = Feed(
            streams=Store(activations, keep=self.keep),
            # Made anew when a run goes on, so that files are needed only where memory is short.
            extras=Store(None if self.keep else activations, keep=self.keep),
            masks=self.masks,
            device=self.place,
        )
        for index in range(finished):  # left by a kill between two steps
            feed.streams.remove(f"stream-{index}")
        with self._outside():
            for number in range(len(self.batches)):
                feed.add(self._capture(number), stream=not finished)
                self._tell(0, "capture", number + 1)
        for block in self.parts[:finished]:
            self._give_back(block)
        return feed

    def _give_back(self, block: Block) -> None:
        """Make a finished block what its edit made it; a streamed one is only that in shape."""
        if self.checkpoint is not None and self.restore is restore_block:
            return  # which has the shapes it had
        module = self.model.get_submodule(block.name)
        streamed = self.checkpoint is not None
        device = self.place if streamed else next(module.parameters()).device
        tensors = read_tensors(self._shard(block.index))
        self.restore(module, block, {name: t.to(device) for name, t in tensors.items()})
        if streamed:
            drop(self.model.get_submodule(block.name))

    # --- one block

    def _block(self, index: int, feed: Feed) -> Mapping[str, Any]:
        block = self.parts[index]
        last = index + 1 == len(self.parts)
        home = self._arrive(block)
        collectors = dict(self.watch(self.model, block))
        observe(
            self.model,
            block,
            feed,
            collectors,
            keep_output=not self.propagate and not last,
            tell=self._tell,
        )
        if self.checkpoint is not None:
            give_back()  # what the passes freed in the middle of the heap, and then the edit
        report = {"block": block.name, **_summaries(collectors)}
        results = {id(collector): collector.result() for collector in collectors.values()}
        found = BlockRun(
            model=self.model,
            block=block,
            module=self.model.get_submodule(block.name),
            statistics={name: results[id(c)] for name, c in collectors.items()},
            feed=feed,
        )
        report = _plain(report | dict(self.edit(found) or {}), index)
        del found, results, collectors  # the sums, before the second pass
        if self.checkpoint is not None:
            give_back()
        self._tell(index, "edit", 1, 1)
        if len(blocks(self.model)) != len(self.parts):
            raise OptionError(
                f"the edit of block {index} changed the number of blocks: blocks are dropped "
                "after calibration, not during it"
            )
        module = self.model.get_submodule(block.name).eval()  # it may be another one now
        if self.propagate and not last:
            run_edited(self.model, block, feed, tell=self._tell)
        if self.folder is not None:
            save_block(self._shard(index), module, block)
            self._tell(index, "save", 1, 1)
        if self.checkpoint is not None:
            drop(module)
        else:
            module.to(home)
        return report

    def _arrive(self, block: Block) -> torch.device:
        """Bring a block's weights to where it runs; says where they were."""
        module = self.model.get_submodule(block.name)
        home = torch.device("cpu")
        if self.checkpoint is not None:
            fill(module, block.name, self.checkpoint.read(f"{block.name}."))
        else:
            home = next(module.parameters()).device
        module.to(self.place)
        return home

    # --- after a block

    def _shard(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"model-block-{index:05}.safetensors"

    def _shards(self) -> list[Path]:
        return [self._shard(index) for index in range(len(self.parts))]

    def _commit(self, index: int, reports: list[Mapping[str, Any]]) -> None:
        """From here on a stopped run goes on after this block."""
        if self.folder is not None:
            write_json(self.folder / _STATE, {"finished": index + 1, "reports": reports})

    def _finish(self) -> None:
        if self.folder is None:
            return
        if self.checkpoint is not None:
            self.checkpoint.finish(self.folder, self.parts, self._shards())
        shutil.rmtree(self.folder / _ACTIVATIONS, ignore_errors=True)

    def _tell(self, block: int, phase: Phase, done: int, total: int | None = None) -> None:
        count = len(self.batches) if total is None else total
        self.on_progress(Progress(block, len(self.parts), phase, done, count))


def _summaries(collectors: Mapping[str, Collector]) -> dict[str, Any]:
    found = {name: collector.summary() for name, collector in collectors.items()}
    told = {name: summary for name, summary in found.items() if summary}
    return {"observed": told} if told else {}


def _plain(report: dict[str, Any], index: int) -> dict[str, Any]:
    """The report as a file would give it back. Errors: OptionError where no file can hold it."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(report, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise OptionError(f"the report of block {index} is not JSON: {error}") from error
    return found


def _sampled(model: nn.Module) -> str:
    """sha256 of the beginning of every parameter, by which another model is told apart."""
    samples = [parameter.detach().flatten()[:_SAMPLE] for parameter in model.parameters()]
    return digest(*samples)
