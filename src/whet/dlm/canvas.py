"""The canvas loop: one loop for every masked-diffusion decoder.

A step asks the provider for logits at the masked positions of each row's window, turns them into
proposals, lets the selector make successors of the rows and choose survivors, and retires the
prompts that the stopper calls finished. Batch equals single: rows never see each other, noise is
keyed by request, and ties are broken by position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet import rng as rng_
from whet.dlm.beam import place_in_group
from whet.dlm.eos import is_eos, stop_positions, suppress_eos
from whet.dlm.options import DecodeOptions
from whet.dlm.provider import FullProvider, GuidedProvider, MakeProvider, Provider
from whet.dlm.schedule import Windows
from whet.dlm.select import Selector
from whet.dlm.state import Proposal, Rows, Successors
from whet.dlm.stop import first_rows
from whet.dlm.trace import Trace
from whet.errors import InputError
from whet.layers.sampling import propose
from whet.models.denoiser import Denoiser

OnCommit = Callable[[int, Rows], None]


@torch.inference_mode()
def denoise(
    model: Any,
    canvas: Int[Tensor, "P L"],
    attention_mask: Tensor | None = None,
    *,
    options: DecodeOptions,
    start: int | None = None,
    on_commit: OnCommit | None = None,
    requests: Sequence[int] | None = None,
    make_provider: MakeProvider | None = None,
) -> tuple[Int[Tensor, "P L"], Trace]:
    """Fill the mask tokens of a batch of canvases.

    model: a whet model or its `Denoiser` (which knows the tokenizer's size). canvas: prompts
    followed, or interrupted, by mask tokens. attention_mask: 1 at real tokens; padding on the
    left. start: first column to fill (default: the first with a mask); windows are cut from here.
    on_commit(step, rows): called after every step with the best hypothesis of each live prompt.
    requests: names of the prompts in the noise keys (default 0, 1, ...).

    Errors: InputError for a canvas without masks or longer than the context; OptionError where
    options do not fit the canvas.
    """
    denoiser = Denoiser.of(model)
    canvas = canvas.to(denoiser.device)
    if attention_mask is not None:
        attention_mask = attention_mask.to(denoiser.device).bool()
        if bool((attention_mask[:, :-1] & ~attention_mask[:, 1:]).any()):
            raise InputError("padding must be on the left: set tokenizer.padding_side = 'left'")
        if bool(attention_mask.all()):
            attention_mask = None
    if canvas.shape[1] > denoiser.context_length:
        raise InputError(
            f"the canvas has {canvas.shape[1]} positions, the model's context "
            f"{denoiser.context_length}: shorten the prompt or gen_length"
        )
    masked = canvas == denoiser.mask_token_id
    if not bool(masked.any(-1).all()):
        raise InputError("a canvas has no mask token to fill")
    first = int(masked.any(0).nonzero()[0])
    start = first if start is None else start
    if first < start:
        raise InputError(f"column {first} holds a mask, before start={start}")
    windows = Windows.cut(start, canvas.shape[1] - start, options.block_length)
    if make_provider is not None:
        provider = make_provider(denoiser, attention_mask, ~masked)
    else:
        provider = _provider(denoiser, attention_mask, ~masked, options)
    loop = _Loop(
        denoiser,
        options,
        windows,
        options.selector(windows),
        provider,
        list(requests) if requests is not None else list(range(len(canvas))),
    )
    return loop.run(canvas, on_commit)


def _provider(
    denoiser: Denoiser, attention_mask: Tensor | None, given: Tensor, options: DecodeOptions
) -> Provider:
    if options.cfg_scale:
        return GuidedProvider(denoiser, attention_mask, given, options.cfg_scale)
    return FullProvider(denoiser, attention_mask)


@dataclasses.dataclass
class _Loop:
    denoiser: Denoiser
    options: DecodeOptions
    windows: Windows
    selector: Selector
    provider: Provider
    requests: list[int]

    def run(self, canvas: Tensor, on_commit: OnCommit | None) -> tuple[Tensor, Trace]:
        rows = self._first_rows(canvas)
        prompts, region = canvas.shape[0], slice(self.windows.start, None)
        result = canvas.clone()
        commit_step = rows.commit_step.clone()
        confidence = rows.confidence.clone()
        rows_per_step: list[Tensor] = []
        step = 0
        while len(rows):
            masked = rows.tokens[:, region] == self.denoiser.mask_token_id
            sent = self.provider.rows
            rows, live = self._step(rows, masked, step)
            # Guidance sends every canvas twice.
            each = (self.provider.rows - sent) // len(live)
            rows_per_step.append(each * torch.bincount(live, minlength=prompts))
            left = (rows.tokens[:, region] == self.denoiser.mask_token_id).sum(-1)
            if on_commit is not None:
                on_commit(step, rows.take(first_rows(rows.owner)))
            finished = self.selector.stopper(rows, left)
            step += 1
            if bool(finished.any()):
                best = rows.take(finished & first_rows(rows.owner))
                result[best.owner] = best.tokens
                commit_step[best.owner] = best.commit_step
                confidence[best.owner] = best.confidence
                rows = rows.take(~finished)
        trace = Trace(
            forwards=self.provider.forwards,
            rows=self.provider.rows,
            commit_step=commit_step.cpu(),
            confidence=confidence.cpu(),
            rows_per_step=torch.stack(rows_per_step).cpu(),
        )
        return result, trace

    def _first_rows(self, canvas: Tensor) -> Rows:
        masked = canvas[:, self.windows.start :] == self.denoiser.mask_token_id
        prompts, device = len(canvas), canvas.device
        window = self.windows.current(masked)
        zeros = torch.zeros(prompts, dtype=torch.long, device=device)
        dtype = getattr(torch, self.options.softmax)
        return Rows(
            tokens=canvas,
            owner=torch.arange(prompts, device=device),
            request=torch.tensor(self.requests, device=device),
            window=window,
            window_step=zeros,
            window_masks=self._in_window(masked, window).sum(-1),
            score=torch.zeros(prompts, dtype=torch.float64, device=device),
            committed=zeros,
            commit_step=torch.full(masked.shape, -1, device=device),
            confidence=torch.zeros(masked.shape, dtype=dtype, device=device),
        )

    def _in_window(self, masked: Bool[Tensor, "R G"], window: Tensor) -> Bool[Tensor, "R G"]:
        if self.windows.count == 1:
            return masked
        return masked & (self.windows.of_positions(masked.device) == window[:, None])

    def _step(self, rows: Rows, masked: Bool[Tensor, "R G"], step: int) -> tuple[Rows, Tensor]:
        """One step; gives the next rows and the owners of the rows that were sent forward."""
        incomplete = masked.any(-1)
        all_live = bool(incomplete.all())
        live = rows if all_live else rows.take(incomplete)
        live_masked = masked if all_live else masked[incomplete]
        proposal = self._propose(live, self._in_window(live_masked, live.window), step)
        successors = self.selector.select(live, proposal)
        after = live.spawn(successors, proposal, self.windows.start, step)
        if not all_live:
            successors, after = _carry(rows, incomplete, successors, after)
        after, left = self._after_commit(after, step)
        kept = self.selector.keep(rows, successors, after, left.sum(-1))
        if kept is not None:
            after = after.take(kept)
        return after, live.owner

    def _propose(self, rows: Rows, candidates: Bool[Tensor, "R G"], step: int) -> Proposal:
        index, position = candidates.nonzero(as_tuple=True)
        logits = self.provider(rows, index, position + self.windows.start)
        options = self.options
        if options.eos == "suppress":
            suppress_eos(logits, self.denoiser.eos_token_ids)
        tokens, confidence = propose(
            logits,
            confidence=options.confidence,
            dtype=getattr(torch, options.softmax),
            temperature=options.temperature,
            uniform=self._noise(rows, candidates, logits.shape[1], step)
            if options.temperature > 0
            else None,
        )
        dense_tokens = torch.zeros(candidates.shape, dtype=torch.long, device=tokens.device)
        dense_confidence = confidence.new_zeros(candidates.shape)
        dense_tokens[index, position] = tokens
        dense_confidence[index, position] = confidence
        priority = dense_confidence
        if options.eos == "defer":
            # Below every confidence: behind everything else, above no threshold.
            ends = candidates & is_eos(dense_tokens, self.denoiser.end_ids)
            priority = dense_confidence.masked_fill(ends, -1e9)
        return Proposal(dense_tokens, dense_confidence, priority, candidates)

    def _noise(self, rows: Rows, candidates: Tensor, vocab: int, step: int) -> Float[Tensor, "N V"]:
        """Uniform noise keyed by request, hypothesis and step, so that a batch equals its parts."""
        parts = []
        keys = (rows.request, place_in_group(rows.owner), candidates.sum(-1))
        for request, rank, count in torch.stack(keys, -1).tolist():
            generator = rng_.keyed_torch(self.options.seed, "token", request, rank, step)
            parts.append(torch.rand(count, vocab, generator=generator, dtype=torch.float64))
        return torch.cat(parts).to(candidates.device)

    def _after_commit(self, rows: Rows, step: int) -> tuple[Rows, Bool[Tensor, "R G"]]:
        """Early stop at EOS, then move rows whose window is full; gives the masks left."""
        region = rows.tokens[:, self.windows.start :]
        left = region == self.denoiser.mask_token_id
        window = self.windows.current(left)
        if self.options.eos == "early_stop":
            finished = self.windows.of_positions(left.device) < window[:, None]
            stop = stop_positions(region, left, finished, self.denoiser.end_ids)
            if bool(stop.any()):
                region[stop] = self.denoiser.end_ids[0]
                rows = dataclasses.replace(
                    rows,
                    commit_step=torch.where(stop, step, rows.commit_step),
                    confidence=rows.confidence.masked_fill(stop, 1.0),
                )
                left = left & ~stop
                window = self.windows.current(left)
        if self.windows.count > 1:
            moved = window != rows.window
            rows = dataclasses.replace(
                rows,
                window=window,
                window_step=rows.window_step.masked_fill(moved, 0),
                window_masks=torch.where(
                    moved, self._in_window(left, window).sum(-1), rows.window_masks
                ),
            )
        return rows, left


def _carry(
    rows: Rows, incomplete: Tensor, successors: Successors, after: Rows
) -> tuple[Successors, Rows]:
    """Put complete hypotheses, unchanged, back at their parents' places."""
    done = (~incomplete).nonzero()[:, 0]
    parent = torch.cat((incomplete.nonzero()[:, 0][successors.parent], done))
    order = parent.argsort(stable=True)
    kept = rows.take(done)
    commit = torch.cat((successors.commit, torch.zeros_like(kept.commit_step, dtype=torch.bool)))
    parallel = torch.cat((successors.parallel, torch.zeros_like(done, dtype=torch.bool)))
    joined = Rows(
        *(
            torch.cat((getattr(after, f.name), getattr(kept, f.name)))[order]
            for f in dataclasses.fields(Rows)
        )
    )
    return Successors(parent[order], commit[order], parallel[order]), joined
