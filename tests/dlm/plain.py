"""Decoding rules over plain floats, written from their papers: the oracle for the selectors.

A rule gets {position: confidence} of the open positions of one window and the step, and gives the
set of positions that it commits.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Step:
    """Step k of a window that was entered with `masks` to fill and has `planned` steps."""

    k: int = 0
    masks: int = 1
    planned: int = 1

    @property
    def quota(self):
        return self.masks // self.planned + (1 if self.k < self.masks % self.planned else 0)


def ordered(c):
    """Positions, most confident first; ties go to the lowest position."""
    return sorted(c, key=lambda p: (-c[p], p))


def quota(c, step):
    return set(ordered(c)[: step.quota])


def threshold(c, step, threshold):
    return {p for p in c if c[p] >= threshold} | {ordered(c)[0]}


def factor(c, step, factor, official=False):
    places = ordered(c)
    if official:
        # The published loop: rank from 0, the first failing one, and its two exceptions.
        bars = [-math.inf] + [1 - factor / (n + 1) for n in range(2, len(places) + 1)]
        for taken in range(len(places)):
            if c[places[taken]] < bars[taken]:
                break
        if taken in (0, len(places) - 1):
            taken += 1
        return set(places[:taken])
    n = 1
    while n < len(places) and c[places[n]] >= 1 - factor / (n + 2):
        n += 1
    return set(places[:n])


def entropy_threshold(c, step, entropy_threshold):
    return {p for p in c if -c[p] <= entropy_threshold} | {ordered(c)[0]}


def entropy_bound(c, step, entropy_bound):
    taken, before = set(), 0.0
    for p in ordered(c):
        if before > entropy_bound:
            break
        taken.add(p)
        before += -c[p]
    return taken


def dinfer(c, step, threshold, threshold_decay=0.0, **credit):
    bar = max(1 - threshold_decay * step.k, threshold) if threshold_decay else threshold
    bar = min(max(c.values()) - 1e-5, bar)
    return {p for p in c if c[p] >= bar}


def hierarchy(c, step, threshold, low_threshold):
    taken = {p for p in c if c[p] > threshold} | {ordered(c)[0]}
    run = {}
    for p in range(min(c), max(c) + 2):
        if p in c:
            run[p] = c[p]
        elif run:
            lead = ordered(run)[0]
            if c[lead] > low_threshold:
                taken.add(lead)
            run = {}
    return taken


def dynamic(c, step, threshold, steps=None):
    wanted = max(step.quota, 1)
    sure = {p for p in c if c[p] > threshold}
    return sure if len(sure) >= wanted else set(ordered(c)[:wanted])


def confidence_of(row, kind):
    """Token and confidence of a row of logits (float64)."""
    p = row.softmax(-1).tolist()
    first, second = sorted(p, reverse=True)[:2]
    token = p.index(first)
    if kind == "margin":
        return token, first - second
    if kind == "neg_entropy":
        return token, sum(x * math.log(x) for x in p if x > 0)
    return token, first


class Credit:
    """dInfer's credit as a dense matrix [L, V] of one window."""

    def __init__(self, weight=0.7, exponent=0.2, decay=0.8):
        self.weight, self.exponent, self.decay = weight, exponent, decay
        self.matrix = None

    def __call__(self, logits, positions, length, first):
        if first:
            self.matrix = torch.zeros(length, logits.shape[1], dtype=logits.dtype)
        else:
            self.matrix *= self.decay
        for row, p in zip(logits, positions, strict=True):
            best = int(row.argmax())
            self.matrix[p, best] += row.softmax(-1)[best] ** self.exponent
        return logits + self.weight * (1 + self.matrix[positions]).log()


def decode(denoiser, canvas, start, rule, *, block=None, steps=None, kind="prob", credit=None):
    """One prompt, window by window: (canvas [L], step that filled each position, steps)."""
    canvas, mask = canvas.clone(), denoiser.mask_token_id
    length = len(canvas) - start
    block = block or length
    planned = steps // (length // block) if steps else block
    when, time = [-1] * length, 0
    for low in range(start, len(canvas), block):
        window = range(low, low + block)
        masks, k = sum(int(canvas[p]) == mask for p in window), 0
        while positions := [p for p in window if canvas[p] == mask]:
            rows = torch.zeros(len(positions), dtype=torch.long)
            with torch.inference_mode():
                logits = denoiser.logits(canvas[None], None, rows, torch.tensor(positions))
            if credit is not None:
                logits = credit(logits, positions, len(canvas), k == 0)
            found = {p: confidence_of(row, kind) for p, row in zip(positions, logits, strict=True)}
            sure = {p: c for p, (_, c) in found.items()}
            for p in rule(sure, Step(k, masks, planned)):
                canvas[p], when[p - start] = found[p][0], time
            k, time = k + 1, time + 1
    return canvas, when, time
