"""The canvas loop: one loop for every diffusion decoder.

A step asks the provider for logits in each row's window, turns them into proposals, lets the
selector make successors of the rows and choose survivors, and retires the prompts that the stopper
calls finished. Prompts may be admitted between steps. Batch equals single: rows never see each
other, noise is keyed by request and by the row's own age, and ties are broken by position.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from whet import rng as rng_
from whet.dlm.beam import place_in_group
from whet.dlm.eos import DEFERRED, is_eos, stop_positions, suppress_eos
from whet.dlm.options import DecodeOptions
from whet.dlm.provider import MakeProvider, SomeLight
from whet.dlm.state import Proposal, Rows, Successors, stack
from whet.dlm.stop import first_rows
from whet.errors import OptionError
from whet.layers.sampling import propose
from whet.models.denoiser import Denoiser

OnCommit = Callable[[int, Rows], None]


@dataclass(frozen=True)
class Finished:
    """A prompt that left the loop.

    place: where it was in the batch. tokens: [L'], its canvas without padding. commit_step,
    confidence: [G'] of its own region. rows_per_step: canvases it sent in each of its steps.
    light_per_step: those that took a light pass.
    """

    place: int
    tokens: Int[Tensor, " n"]
    commit_step: Int[Tensor, " g"]
    confidence: Float[Tensor, " g"]
    rows_per_step: list[int]
    light_per_step: list[int]


class CanvasLoop:
    """`admit` prompts, then `step` while there is something `live`.

    Errors: OptionError where the options do not fit the model.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        options: DecodeOptions,
        *,
        on_commit: OnCommit | None = None,
        make_provider: MakeProvider | None = None,
    ) -> None:
        options.check_model(denoiser)
        if options.edits and options.branches:
            raise OptionError(
                "edits with beams: hypotheses are ranked by what they committed, which an edit "
                "takes back; use one"
            )
        self.denoiser, self.options, self.on_commit = denoiser, options, on_commit
        self.forward = options.forward(denoiser)
        self.provider = (make_provider or options.provider)(denoiser, self.forward)
        self.selector = options.selector(denoiser)
        self.rows: Rows | None = None
        self.steps = 0
        self._windowed = False
        self._cut: tuple[Tensor, Tensor] | None = None
        self._lengths: dict[int, int] = {}
        self._sent: dict[int, list[int]] = {}
        self._light: dict[int, list[int]] = {}

    @property
    def live(self) -> bool:
        """Whether any prompt is unfinished."""
        return self.rows is not None and len(self.rows) > 0

    def admit(
        self,
        canvas: Int[Tensor, "P L"],
        first: Int[Tensor, " P"],
        *,
        start: int,
        requests: Sequence[int],
        places: Sequence[int],
    ) -> None:
        """Take in canvases that have `first` columns of padding and are to be filled from `start`.

        places: free numbers below the size of the batch. Errors: OptionError where options do not
        fit the canvas.
        """
        masked = canvas[:, start:] == self.denoiser.mask_token_id
        prompts, length = masked.shape
        before = [start - n for n in first.tolist()]
        windows = [self.options.windows(self.denoiser, length, b) for b in before]
        planned = [self.options.planned_steps(w) for w in windows]
        self._windowed |= any(w.count > 1 for w in windows)

        def column(values: Sequence[int]) -> Tensor:
            return torch.tensor(list(values), device=canvas.device)

        zeros = torch.zeros(prompts, dtype=torch.long, device=canvas.device)
        rows = Rows(
            tokens=canvas,
            pending=masked,
            held=zeros.bool(),
            owner=column(places),
            request=column(requests),
            first=first,
            block_length=column([w.block_length for w in windows]),
            offset=column([w.offset for w in windows]),
            planned=column(planned),
            window=zeros,
            window_step=zeros,
            window_masks=zeros,
            full_steps=zeros,
            age=zeros,
            score=zeros.double(),
            committed=zeros,
            commit_step=torch.full_like(masked, -1, dtype=torch.long),
            confidence=torch.zeros_like(masked, dtype=getattr(torch, self.options.softmax)),
            slot=zeros - 1,
        )
        rows = self._enter_windows(rows, torch.ones_like(rows.held))
        for place in places:
            self._lengths[place], self._sent[place], self._light[place] = length, [], []
        self.rows = rows if self.rows is None else stack([self.rows, rows])

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """One step of every live prompt; gives those that it finished."""
        assert self.rows is not None
        rows = self._step(self.rows)
        if self.on_commit is not None:
            self.on_commit(self.steps, rows.take(first_rows(rows.owner)))
        self.steps += 1
        done = self.selector.stopper(rows, rows.left())
        finished: list[Finished] = []
        if bool(done.any()):
            finished = self._retire(rows.take(done & first_rows(rows.owner)))
            rows = rows.take(~done)
        self.rows = rows
        return finished

    def _retire(self, best: Rows) -> list[Finished]:
        out = []
        for row, place in enumerate(best.owner.tolist()):
            length = self._lengths.pop(place)
            out.append(
                Finished(
                    place,
                    best.tokens[row, int(best.first[row]) :],
                    best.commit_step[row, -length:],
                    best.confidence[row, -length:],
                    self._sent.pop(place),
                    self._light.pop(place),
                )
            )
        return out

    def shrink(self) -> None:
        """Cut off columns that are padding in every row (after long prompts have left)."""
        rows = self.rows
        if rows is None or not len(rows):
            self.rows = None
            return
        spare = int(rows.first.min())
        region = max(self._lengths[place] for place in rows.owner.tolist())
        self.rows = rows.resized(rows.tokens.shape[1] - spare, region)

    def _step(self, rows: Rows) -> Rows:
        unfinished = rows.pending.any(-1) | rows.held
        all_live = bool(unfinished.all())
        live = rows if all_live else rows.take(unfinished)
        proposal = self._propose(live)
        self._count(live.owner)
        successors = self.selector.select(live, proposal)
        # From here on rows are known by their place in this call of the provider.
        live = dataclasses.replace(live, slot=torch.arange(len(live), device=live.slot.device))
        after = live.spawn(successors, proposal)
        if not all_live:
            successors, after = _carry(rows, unfinished, successors, after)
        after = self._after_commit(after)
        kept = self.selector.keep(rows, successors, after, after.left())
        return after if kept is None else after.take(kept)

    def _count(self, owner: Int[Tensor, " R"]) -> None:
        """Note what each prompt sent in this step."""
        sent, light = Counter(owner.tolist()), Counter[int]()
        places = list(sent)
        if isinstance(self.provider, SomeLight):
            sent = Counter(owner[self.provider.full].tolist())
            light = Counter(owner[self.provider.light].tolist())
        for place in places:
            self._sent[place].append(sent[place] * self.provider.copies)
            self._light[place].append(light[place])

    def _index(self, rows: Rows) -> Int[Tensor, "R G"]:
        """`rows.windows()`, remembered while rows and regions are the same."""
        if self._cut is None or self._cut[0] is not rows.offset:
            self._cut = (rows.offset, rows.windows())
        return self._cut[1]

    def _in_window(self, rows: Rows) -> Bool[Tensor, "R G"] | None:
        """Positions of each row's window; None where that is the whole region."""
        return self._index(rows) == rows.window[:, None] if self._windowed else None

    def _propose(self, rows: Rows) -> Proposal:
        options, inside = self.options, self._in_window(rows)
        candidates = rows.pending if inside is None else rows.pending & inside
        asked, editable = candidates, None
        if options.edits:
            editable = ~rows.pending & (rows.commit_step >= 0)
            editable = editable if inside is None else editable & inside
            asked = candidates | editable
        index, position = asked.nonzero(as_tuple=True)
        logits = self.provider(rows, index, position + rows.start)
        if options.eos == "suppress":
            suppress_eos(logits, self.denoiser.eos_token_ids)
        heat = options.temperatures(rows)
        sampling = isinstance(heat, Tensor) or heat > 0
        tokens, confidence = propose(
            logits,
            confidence=options.confidence,
            dtype=getattr(torch, options.softmax),
            temperature=heat[index] if isinstance(heat, Tensor) else heat,
            uniform=self._noise(rows, asked) if sampling else None,
            top_p=options.top_p,
            top_k=options.top_k,
            of=options.confidence_of,
            ignored=options.ignored_ids(self.denoiser),
        )
        dense_tokens = torch.zeros_like(rows.commit_step)
        dense_confidence = confidence.new_zeros(asked.shape)
        dense_tokens[index, position] = tokens
        dense_confidence[index, position] = confidence
        priority = dense_confidence
        if options.eos == "defer" and not options.official_eos:
            ends = asked & is_eos(dense_tokens, self.denoiser.end_ids)
            priority = dense_confidence.masked_fill(ends, DEFERRED)
        likeliest = None
        if options.uniform:
            likeliest = torch.zeros_like(dense_tokens)
            likeliest[index, position] = logits.argmax(-1)
        return Proposal(dense_tokens, dense_confidence, priority, candidates, editable, likeliest)

    def _noise(self, rows: Rows, asked: Tensor) -> Float[Tensor, " N"]:
        """Uniform noise keyed by request, hypothesis and age, so that a batch equals its parts.

        A rule may bring its own.
        """
        own = self.options.token_noise(rows, asked)
        if own is not None:
            return own
        parts = []
        keys = (rows.request, place_in_group(rows.owner), rows.age, asked.sum(-1))
        for request, rank, age, count in torch.stack(keys, -1).tolist():
            generator = rng_.keyed_torch(self.options.seed, "token", request, rank, age)
            parts.append(torch.rand(count, generator=generator, dtype=torch.float64))
        return torch.cat(parts).to(asked.device)

    def _after_commit(self, rows: Rows) -> Rows:
        """Early stop at EOS, then move rows whose window is full and not held."""
        if not self._windowed:
            return rows
        index = self._index(rows)
        window = self._current(rows, index)
        if self.options.eos == "early_stop":
            region = rows.tokens[:, rows.start :]
            before = (index < window[:, None]) & ~rows.given
            stop = stop_positions(region, rows.pending, before, self.denoiser.end_ids)
            if bool(stop.any()):
                region[stop] = self.denoiser.end_ids[0]
                rows = dataclasses.replace(
                    rows,
                    pending=rows.pending & ~stop,
                    commit_step=torch.where(stop, rows.age[:, None] - 1, rows.commit_step),
                    confidence=rows.confidence.masked_fill(stop, 1.0),
                )
                window = self._current(rows, index)
        moved = window != rows.window
        if not bool(moved.any()):
            return rows
        return self._enter_windows(dataclasses.replace(rows, window=window), moved)

    def _current(self, rows: Rows, index: Int[Tensor, "R G"]) -> Int[Tensor, " R"]:
        """Each row's leftmost window with something to fill; the same as before where held or
        full."""
        window = index.masked_fill(~rows.pending, 2**62).amin(-1)
        return torch.where(rows.held | (window == 2**62), rows.window, window)

    def _enter_windows(self, rows: Rows, moved: Bool[Tensor, " R"]) -> Rows:
        """Start the step counters of rows that moved to another window (or are new)."""
        if self._windowed:
            index = rows.windows()
            rows = dataclasses.replace(rows, window=self._current(rows, index))
            inside = rows.pending & (index == rows.window[:, None])
        else:
            inside = rows.pending
        rows = dataclasses.replace(
            rows,
            window_step=rows.window_step.masked_fill(moved, 0),
            full_steps=rows.full_steps.masked_fill(moved, 0),
            window_masks=torch.where(moved, inside.sum(-1), rows.window_masks),
        )
        if self.options.uniform:
            rows = self._random_canvas(rows, inside & moved[:, None])
        return rows

    def _random_canvas(self, rows: Rows, where: Bool[Tensor, "R G"]) -> Rows:
        """Random tokens, keyed by request and window, where a window is entered."""
        tokens = rows.tokens.clone()
        for row in where.any(-1).nonzero()[:, 0].tolist():
            key = (int(rows.request[row]), int(rows.window[row]))
            generator = rng_.keyed_torch(self.options.seed, "canvas", *key)
            fresh = torch.randint(
                self.denoiser.vocab_size, (int(where[row].sum()),), generator=generator
            )
            tokens[row, rows.start :][where[row]] = fresh.to(tokens.device)
        return dataclasses.replace(rows, tokens=tokens)


def _carry(
    rows: Rows, unfinished: Tensor, successors: Successors, after: Rows
) -> tuple[Successors, Rows]:
    """Put complete hypotheses, unchanged, back at their parents' places."""
    done = (~unfinished).nonzero()[:, 0]
    parent = torch.cat((unfinished.nonzero()[:, 0][successors.parents()], done))
    order = parent.argsort(stable=True)
    kept = rows.take(done)
    none = torch.zeros_like(done, dtype=torch.bool)
    parallel = successors.parallel
    if parallel is None:
        parallel = torch.zeros(len(successors.commit), dtype=torch.bool, device=done.device)
    commit = torch.cat((successors.commit, torch.zeros_like(kept.pending)))[order]
    joined = Rows(
        *(
            torch.cat((getattr(after, f.name), getattr(kept, f.name)))[order]
            for f in dataclasses.fields(Rows)
        )
    )
    return Successors(parent[order], commit, torch.cat((parallel, none))[order]), joined
