"""Cached forwards: what is fed, what is read again, and what is exact. See test_block_cache too."""

import copy
import math

import pytest
import torch
from torch.nn.functional import silu

from tests.dlm.families import (
    CAUSAL,
    FAMILIES,
    FULL,
    assert_same,
    fed_shapes,
    options_for,
    ragged,
    window_ends,
)
from tests.models.test_denoiser import Adapter
from whet.dlm.canvas import denoise
from whet.dlm.forward import CachedForward, Feed, FullForward
from whet.dlm.provider import PlainProvider
from whet.models.denoiser import Denoiser

LENGTHS, G = [5, 2, 7, 3], 12
KINDS = {
    "tiny_llada": ("prefix", "dual"),
    "tiny_dream": ("prefix", "dual"),
    "tiny_sdar": ("prefix", "dual", "block"),
    "tiny_llada2": ("prefix", "dual", "block"),
}


def all_kinds(families=FAMILIES):
    return pytest.mark.parametrize(
        ("family", "kind"), [(family, kind) for family in families for kind in KINDS[family]]
    )


def feed(tokens, first, low, high, step=0, slot=None):
    """Canvases as a forward gets them; by default rows lie where they lay before."""
    rows = len(tokens)
    slot = list(range(rows)) if slot is None else slot
    columns = (torch.tensor(v) for v in (first, low, high, [step] * rows, slot))
    return Feed(tokens, *columns)


def ask(low, high):
    """(canvas, column) of every column in each canvas's [low, high)."""
    pairs = [(i, c) for i, (a, b) in enumerate(zip(low, high, strict=True)) for c in range(a, b)]
    return tuple(torch.tensor(pairs).T)


@pytest.mark.parametrize(
    ("decoder", "settings"),
    [
        ("low-confidence", {}),
        ("threshold", {"eos": "early_stop"}),
        ("credit", {}),
        ("soar", {}),
        ("llada2.1", {"cfg_scale": 0.5}),
        ("random", {"smooth": 0.3, "temperature": 0.8}),
    ],
)
@all_kinds(FULL)
def test_a_cache_refreshed_every_step_is_no_cache(request, family, kind, decoder, settings):
    model = request.getfixturevalue(family)
    canvas, real = ragged(LENGTHS, G)

    def run(**cache):
        options = options_for(decoder, block_length=4, **settings, **cache)
        return denoise(model, canvas, real, options=options, start=7)

    assert_same(run(), run(cache=kind, refresh_interval=1))


class Compared(PlainProvider):
    """Keeps how far each row's logits are from those of a whole forward."""

    def __init__(self, denoiser, forward):
        super().__init__(denoiser, forward)
        self.seen = []

    def __call__(self, rows, index, position):
        given = super().__call__(rows, index, position)
        exact = PlainProvider(self.denoiser, FullForward(self.denoiser))(rows, index, position)
        apart = (given - exact).nan_to_num(0.0).abs().amax(-1)  # the mask token: -inf in both
        for row in range(len(rows)):
            self.seen.append((int(rows.window_step[row]), float(apart[index == row].max())))
        return given


@pytest.mark.parametrize("refresh", [None, 2, 3])
@all_kinds()
def test_steps_that_refresh_are_exact_and_only_they(request, family, kind, refresh):
    """The first step of every window is; in block-causal models all are. Rows are at different
    steps of different windows at the same time."""
    refresh = None if kind == "block" else refresh
    model, made = request.getfixturevalue(family), []
    canvas, real = ragged(LENGTHS, G)

    def make(denoiser, forward):
        made.append(Compared(denoiser, forward))
        return made[0]

    block = {"block_length": 6} if family in FULL else {}
    options = options_for("threshold", cache=kind, refresh_interval=refresh, **block)
    denoise(model, canvas, real, options=options, start=7, make_provider=make)
    exact = [far for step, far in made[0].seen if step == 0 or (refresh and step % refresh == 0)]
    stale = [far for step, far in made[0].seen if step != 0 and (not refresh or step % refresh)]
    assert len(exact) >= 8
    assert max(exact) < 1e-10
    if family in CAUSAL:
        assert max(stale) < 1e-10
    else:
        assert min(stale) > 1e-8


@torch.no_grad()
@pytest.mark.parametrize("vicinity", [0, 3])
@all_kinds()
def test_nothing_changed_gives_the_states_of_a_whole_forward(request, family, kind, vicinity):
    denoiser = Denoiser.of(request.getfixturevalue(family))
    tokens = torch.randint(1, 39, (3, 20))
    first, low, high = [0, 4, 1], [12, 8, 1], [16, 12, 5]
    at = ask([c + (c == f) for f, c in zip(first, low, strict=True)], high)  # not position 0
    cached = CachedForward(denoiser, kind, None, vicinity)
    cached(feed(tokens, first, low, high, slot=[-1] * 3), *at)
    found = cached(feed(tokens, first, low, high, step=1), *at)
    expected = FullForward(denoiser)(feed(tokens, first, low, high), *at)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("vicinity", [0, 2])
@all_kinds()
def test_which_tokens_are_read_again(request, family, kind, vicinity):
    """A token matters in a later step exactly where its column is fed again (and seen)."""
    denoiser = Denoiser.of(request.getfixturevalue(family))
    length, first, low, high = 20, 4, 8, 12
    vicinity = vicinity if kind == "dual" else 0
    tokens = torch.randint(1, 38, (1, length))
    at = ask([low], [high])
    changes = set()
    for column in range(first, length):
        cached = CachedForward(denoiser, kind, None, vicinity)
        before = cached(feed(tokens, [first], [low], [high], slot=[-1]), *at)
        other = tokens.clone()
        other[0, column] += 1
        after = cached(feed(other, [first], [low], [high], step=1), *at)
        if (after - before).abs().max() > 1e-9:
            changes.add(column)
    shift = int(family == "tiny_dream")
    begin = max(low - vicinity - shift, first)
    end = {"prefix": length, "dual": high + vicinity, "block": high}[kind]
    assert changes == set(range(begin, high if family in CAUSAL else end))


class ByHand:
    """LLaDA on one canvas, layer by layer; what is not fed keeps its keys and values.

    Positions count from the first real token. Written from the architecture, not from the code.
    """

    def __init__(self, model):
        self.config, parts = model.config, model.model.transformer
        self.embedding, self.blocks, self.norm = parts["wte"].weight, parts["blocks"], parts["ln_f"]
        self.held = [{} for _ in self.blocks]

    def _norm(self, x, layer):
        return (
            layer.weight * x / (x.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps).sqrt()
        )

    def _turn(self, x, positions):
        half = x.shape[-1] // 2
        speed = self.config.rope_theta ** (-torch.arange(half).double() / half)
        angle = torch.tensor(positions)[:, None, None] * speed
        pairs = torch.complex(x[..., :half], x[..., half:])
        turned = pairs * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), -1)

    def feed(self, tokens, positions):
        """Final states of the fed positions; tokens: {position: token}."""
        x = self.embedding[[tokens[p] for p in positions]]
        group = self.config.n_heads // self.config.n_kv_heads
        width = self.config.d_model // self.config.n_heads
        for block, held in zip(self.blocks, self.held, strict=True):
            y = self._norm(x, block.attn_norm)
            q, k, v = (
                (y @ matrix.weight.T).unflatten(-1, (-1, width))
                for matrix in (block.q_proj, block.k_proj, block.v_proj)
            )
            held.update(zip(positions, zip(self._turn(k, positions), v, strict=True), strict=True))
            keys, values = (torch.stack(t) for t in zip(*held.values(), strict=True))
            keys, values = (t.repeat_interleave(group, 1) for t in (keys, values))
            scores = torch.einsum("qhd,khd->hqk", self._turn(q, positions), keys) / math.sqrt(width)
            mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).flatten(1)
            x = x + mixed @ block.attn_out.weight.T
            y = self._norm(x, block.ff_norm)
            x = (
                x
                + (silu(y @ block.ff_proj.weight.T) * (y @ block.up_proj.weight.T))
                @ block.ff_out.weight.T
            )
        return self._norm(x, self.norm)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "vicinity"), [("prefix", 0), ("dual", 0), ("dual", 2)])
@pytest.mark.parametrize("seed", [0, 1])
def test_stale_keys_are_mixed_in_as_by_hand(tiny_llada, kind, vicinity, seed):
    """Tokens change anywhere; canvases are copied, dropped, reordered, widened and cropped."""
    generator = torch.Generator().manual_seed(seed)
    forward = CachedForward(Denoiser.of(tiny_llada), kind, None, vicinity)
    tokens = torch.randint(1, 39, (2, 16), generator=generator)
    first, low, high = [3, 1], [8, 6], [12, 10]
    canvases, slot = [ByHand(tiny_llada), ByHand(tiny_llada)], [-1, -1]

    def check(step, fed):
        begin, end = [lo for lo, _ in fed], [hi for _, hi in fed]
        found = forward(feed(tokens, first, low, high, step, slot), *ask(begin, end))
        expected = [
            hand.feed(
                {c - f: int(row[c]) for c in range(f, len(row))}, [c - f for c in range(lo, hi)]
            )
            for hand, row, f, (lo, hi) in zip(canvases, tokens, first, fed, strict=True)
        ]
        torch.testing.assert_close(found, torch.cat(expected), atol=1e-11, rtol=0)

    check(0, [(f, 16) for f in first])
    # Where each canvas was in the step before, and columns that come in on the left.
    for step, (slot, wider) in enumerate([([0, 1], 0), ([1, 0, 1], 2), ([2, 1], -1)], start=1):
        canvases = [copy.deepcopy(canvases[s]) for s in slot]
        first, low, high = ([v[s] + wider for s in slot] for v in (first, low, high))
        tokens = torch.nn.functional.pad(tokens[slot], (wider, 0))
        length = tokens.shape[1]
        changed = torch.rand(tokens.shape, generator=generator) < 0.4
        fresh = torch.randint(1, 39, tokens.shape, generator=generator)
        tokens = torch.where(changed, fresh, tokens)
        check(
            step,
            [
                (lo, length) if kind == "prefix" else (max(lo - vicinity, f), hi + vicinity)
                for f, lo, hi in zip(first, low, high, strict=True)
            ],
        )


def fed_columns(family, kind, before, length, refresh=None, vicinity=0):
    """Columns fed in each step of a decoding of one token per step, by the formula."""
    shift, causal, end = int(family == "tiny_dream"), family in CAUSAL, before + length
    widths, last = [], None
    for low, high in window_ends(family, before, length):
        seen = high if causal else end
        begin = max(low - shift, 0)
        for step in range(high - max(low, before)):
            refreshed = step == 0 or (refresh is not None and step % refresh == 0)
            if (
                kind == "none"
                or (kind != "block" and refreshed)
                or (kind == "block" and not widths)
            ):
                widths.append(seen)
            elif kind == "prefix":
                widths.append(seen - begin)
            elif kind == "dual":
                widths.append(min(high + vicinity, seen) - max(begin - vicinity, 0))
            else:  # the block before too, once: its last tokens were not forwarded yet
                widths.append(high - (last if step == 0 else low))
        last = low
    return widths


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cache": "prefix"},
        {"cache": "prefix", "refresh_interval": 2},
        {"cache": "dual"},
        {"cache": "dual", "refresh_interval": 3},
        {"cache": "dual", "vicinity": 2},
        {"cache": "dual", "vicinity": 9},
        {"cache": "block"},
    ],
    ids=lambda s: ",".join(map(str, s.values())) or "none",
)
@pytest.mark.parametrize(("before", "guidance"), [(1, 0.0), (8, 0.0), (6, 0.5)])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_fed_is_what_the_formula_says(request, family, before, guidance, settings):
    kind, length, copies = settings.get("cache", "none"), 8, 2 if guidance else 1
    if kind not in ("none", *KINDS[family]):
        settings, kind = {}, "none"
    model = request.getfixturevalue(family)
    canvas, _ = ragged([before], length)
    options = options_for("low-confidence", block_length=4, cfg_scale=guidance, **settings)
    with fed_shapes(model) as shapes:
        _, trace = denoise(model, canvas, options=options, start=before)
    also = (settings.get("refresh_interval"), settings.get("vicinity", 0))
    widths = fed_columns(family, kind, before, length, *also)
    assert shapes == [(copies, width) for width in widths]
    assert (trace.forwards, trace.rows) == (length, copies * length)
    assert trace.positions == copies * sum(widths)


def test_a_window_at_the_very_beginning_has_no_column_before_it(tiny_dream):
    canvas = torch.tensor([[7] + [39] * 7])
    options = options_for("low-confidence", block_length=4, cache="dual")
    with fed_shapes(tiny_dream) as shapes:
        denoise(tiny_dream, canvas, options=options, start=0)
    assert [width for _, width in shapes] == [8, 4, 4, 8, 5, 5, 5]


@pytest.mark.parametrize("decoder", ["threshold", "soar"])
@all_kinds()
def test_a_ragged_batch_counts_what_the_model_saw(request, family, kind, decoder):
    """Rows that refresh and rows that do not are fed in two forwards."""
    model = request.getfixturevalue(family)
    canvas, real = ragged(LENGTHS, G)
    with fed_shapes(model) as shapes:
        options = options_for(decoder, block_length=4, cache=kind)
        _, trace = denoise(model, canvas, real, options=options, start=7)
    assert trace.forwards == len(shapes)
    assert trace.rows == sum(rows for rows, _ in shapes) == int(trace.rows_per_step.sum())
    assert trace.positions == sum(rows * columns for rows, columns in shapes)
    if kind != "block":
        assert trace.forwards > int(trace.steps.max())


@all_kinds()
def test_a_wrapped_model_is_cached_alike(request, family, kind):
    """As PEFT wraps: two layers that pass attributes on to their content."""
    model = request.getfixturevalue(family)
    canvas, real = ragged(LENGTHS, G)
    options = options_for("threshold", block_length=4, cache=kind)
    plain = denoise(model, canvas, real, options=options, start=7)
    wrapped = Adapter(Adapter(model, "model"), "base_model")
    assert_same(plain, denoise(wrapped, canvas, real, options=options, start=7), tolerance=0)
