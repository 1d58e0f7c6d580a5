"""Every rule against its plain counterpart: on random proposals and as whole decodings."""

import functools
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import MASK, VOCAB
from tests.dlm import plain
from whet.dlm.block import EditSelector
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.dinfer import CreditProvider
from whet.dlm.entropy import within_bound
from whet.dlm.state import Proposal, Rows
from whet.models.denoiser import Denoiser

G = 12
ENTROPY = ("entropy-threshold", "entropy-bound")
# The two rules that by themselves make something of how far a deferred token stands below.
NO_DEFERRED = ("dinfer-threshold", "entropy-bound")

RULES = [
    ("low-confidence", plain.quota, {}),
    *(("threshold", plain.threshold, {"threshold": t}) for t in (0.0, 0.5, 0.9, 1.0)),
    *(("factor", plain.factor, {"factor": f}) for f in (0.0, 0.5, 1.0, 2.5)),
    *(("factor", plain.factor, {"factor": f, "official": True}) for f in (0.0, 0.5, 1.0, 2.5)),
    *(
        ("entropy-threshold", plain.entropy_threshold, {"entropy_threshold": e})
        for e in (0.0, 0.45, 0.5)
    ),
    *(("entropy-bound", plain.entropy_bound, {"entropy_bound": b}) for b in (0.0, 0.5, 1.25)),
    *(("dinfer-threshold", plain.dinfer, {"threshold": t}) for t in (0.0, 0.5, 1.0)),
    ("dinfer-threshold", plain.dinfer, {"threshold": 0.25, "threshold_decay": 0.125}),
    *(
        ("hierarchy", plain.hierarchy, {"threshold": high, "low_threshold": low})
        for high, low in ((0.9, 0.4), (0.5, 0.5), (0.75, 0.0), (1.0, 1.0))
    ),
    *(("sdar", plain.dynamic, {"threshold": t}) for t in (0.0, 0.5, 0.95)),
    ("llada2", plain.dynamic, {"threshold": 0.75}),
]


def name_of(value):
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "plain"
    return value if isinstance(value, str) else ""


def options_of(decoder, settings, **more):
    texts = {k: str(v).lower() for k, v in {"softmax": "float64", **settings, **more}.items()}
    return decoder_options(decoder, texts)


def rows_of(pending, **columns):
    """Rows with `pending` [R, G] positions behind a prompt of two; columns override the rest."""
    count, width = pending.shape
    zeros = torch.zeros(count, dtype=torch.long)
    fields = {
        "tokens": torch.zeros(count, width + 2, dtype=torch.long),
        "pending": pending,
        "held": zeros.bool(),
        "request": torch.arange(count),
        "owner": torch.arange(count),
        "block_length": zeros + width,
        "planned": zeros + width,
        "window_masks": pending.sum(-1),
        "score": zeros.double(),
        "commit_step": torch.full((count, width), -1),
        "confidence": torch.zeros(count, width, dtype=torch.float64),
        "slot": zeros - 1,
    }
    names = ("first", "offset", "window", "window_step", "full_steps", "age", "committed")
    return Rows(**{**dict.fromkeys(names, zeros), **fields, **columns})


def random_steps(count, width, seed, *, deferred, dtype, sign=1.0):
    """Rows in the middle of a window and what they propose.

    Confidences lie on sixteenths (so that many tie, and sums and bars are exact); where nothing is
    to be filled they are noise that no rule may look at.
    """
    g = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=g)

    low = torch.randint(0, width, (count, 1), generator=g)
    high = low + torch.randint(1, width + 1, (count, 1), generator=g)
    column = torch.arange(width)
    candidates = (column >= low) & (column < high) & (rand(count, width) < rand(count, 1))
    candidates |= column == low  # never none
    confidence = torch.randint(0, 17, (count, width), generator=g) / 16
    confidence = (confidence.to(dtype) if sign > 0 else -2 * confidence.to(dtype)).clone()
    later = rand(count, width) < deferred * rand(count, 1)
    masks = candidates.sum(-1) + torch.randint(0, 4, (count,), generator=g)
    rows = rows_of(
        candidates,
        window_step=torch.randint(0, 6, (count,), generator=g),
        window_masks=masks,
        planned=torch.randint(1, 9, (count,), generator=g),
    )
    tokens = torch.randint(1, MASK, (count, width), generator=g)
    priority = confidence.masked_fill(later, -1e9)
    return rows, Proposal(tokens, confidence, priority, candidates)


def step_of(rows, row):
    return plain.Step(
        int(rows.window_step[row]), int(rows.window_masks[row]), int(rows.planned[row])
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("decoder", "rule", "settings"), RULES, ids=name_of)
def test_what_is_committed(tiny_llada, decoder, rule, settings, dtype):
    selector = options_of(decoder, settings).selector(Denoiser.of(tiny_llada))
    sign = -1.0 if decoder in ENTROPY else 1.0
    deferred = 0.0 if decoder in NO_DEFERRED else 1.0
    rows, proposal = random_steps(300, 9, 1, deferred=deferred, dtype=dtype, sign=sign)
    commit = selector.select(rows, proposal).commit
    sizes = set()
    for row in range(len(rows)):
        c = {
            p: float(proposal.priority[row, p]) for p in rows.pending[row].nonzero()[:, 0].tolist()
        }
        expected = rule(c, step_of(rows, row), **settings)
        assert set(commit[row].nonzero()[:, 0].tolist()) == expected, (c, step_of(rows, row))
        sizes.add(len(expected))
    assert len(sizes) > 1 or settings.get("threshold") == 1.0


def test_the_bars_of_the_factor_rule_are_as_precise_as_confidences(tiny_llada):
    sure = torch.tensor([[0.9, 1 - 1 / 3, 0.1]], dtype=torch.float64)  # 1 - 1/3: rank 2's own bar
    rows = rows_of(torch.ones(1, 3, dtype=torch.bool))
    tokens = torch.zeros(1, 3, dtype=torch.long)
    selector = options_of("factor", {"factor": 1.0}).selector(Denoiser.of(tiny_llada))
    for less, taken in ((0.0, 2), (1e-12, 1)):
        proposal = Proposal(tokens, sure - less, sure - less, rows.pending)
        assert int(selector.select(rows, proposal).commit.sum()) == taken


def test_what_nearly_ties_with_the_best_goes_with_it(tiny_llada):
    sure = torch.tensor([[0.5, 0.5 - 0.9e-5, 0.5 - 1.1e-5]], dtype=torch.float64)
    rows = rows_of(torch.ones(1, 3, dtype=torch.bool))
    proposal = Proposal(torch.zeros(1, 3, dtype=torch.long), sure, sure, rows.pending)
    for threshold, taken in ((0.9, 2), (0.499999, 2), (0.4, 3)):
        selector = options_of("dinfer-threshold", {"threshold": threshold}).selector(
            Denoiser.of(tiny_llada)
        )
        assert selector.select(rows, proposal).commit[0].tolist() == [True, True, taken == 3]


def test_a_deferred_token_does_not_slip_under_the_entropy_bound():
    """In float32 (0.5 + 1e9) - 1e9 is 0; the half before it must still count."""
    for dtype in (torch.float32, torch.float64):
        entropy = torch.tensor([[0.5, 1e9, 1e9], [1e9, 0.5, 0.25]], dtype=dtype)
        taken = within_bound(entropy, torch.ones(2, 3, dtype=torch.bool), 0.3)
        assert taken.tolist() == [[True, False, False], [False, True, True]]


def test_edits_and_being_held_are_as_the_paper_says():
    """Filled tokens change where another is surer than the bar; full blocks wait for a reading
    that changes nothing, `max_post_steps` of them at most."""
    count, width, most = 400, 5, 2
    rows, proposal = random_steps(count, width, 2, deferred=0.0, dtype=torch.float64)
    g = torch.Generator().manual_seed(3)
    given = torch.rand(count, width, generator=g) < 0.2
    full = torch.rand(count, generator=g) < 0.5
    candidates = proposal.candidates & ~given & ~full[:, None]
    rows = rows_of(
        candidates,
        tokens=torch.randint(1, 4, (count, width + 2), generator=g),
        commit_step=torch.where(given | candidates, -1, 0),
        window_step=rows.window_step,
        planned=rows.planned,
        held=~candidates.any(-1),
        full_steps=torch.randint(0, most, (count,), generator=g),
    )
    tokens = torch.randint(1, 4, (count, width), generator=g)
    editable = ~candidates & ~given
    proposal = Proposal(tokens, proposal.confidence, proposal.confidence, candidates, editable)
    got = EditSelector(0.75, 0.5, most).select(rows, proposal)
    seen = set()
    for row in range(count):
        sure = proposal.confidence[row].tolist()
        c = {p: sure[p] for p in range(width) if candidates[row, p]}
        fill = plain.dynamic(c, step_of(rows, row), 0.75) if c else set()
        edit = {
            p
            for p in range(width)
            if editable[row, p] and tokens[row, p] != rows.tokens[row, p + 2] and sure[p] > 0.5
        }
        readings = int(rows.full_steps[row]) + 1
        held = (bool(edit) and readings < most) if not c else len(fill) == len(c)
        assert set(got.commit[row].nonzero()[:, 0].tolist()) == fill | edit
        assert bool(got.held[row]) == held
        seen.add((bool(c), bool(fill), bool(edit), held))
    assert len(seen) >= 7


WHOLE = [
    ("low-confidence", plain.quota, {"steps": 8}, {}),
    ("threshold", plain.threshold, {"threshold": 0.2}, {}),
    ("threshold", plain.threshold, {"threshold": 0.05}, {"confidence": "margin"}),
    ("threshold", plain.threshold, {"threshold": -3.15}, {"confidence": "neg_entropy"}),
    ("factor", plain.factor, {"factor": 2.5}, {}),
    ("factor", plain.factor, {"factor": 2.5, "official": True}, {}),
    ("entropy-threshold", plain.entropy_threshold, {"entropy_threshold": 3.15}, {}),
    ("entropy-bound", plain.entropy_bound, {"entropy_bound": 4.0}, {}),
    ("dinfer-threshold", plain.dinfer, {"threshold": 0.15, "threshold_decay": 0.4}, {}),
    ("credit", plain.dinfer, {"threshold": 0.25}, {}),
    ("hierarchy", plain.hierarchy, {"threshold": 0.3, "low_threshold": 0.15}, {}),
    ("sdar", plain.dynamic, {"threshold": 0.2, "steps": 8}, {}),
    ("llada2", plain.dynamic, {"threshold": 0.2}, {}),
    *(
        ("dream", plain.quota, {"steps": 8}, {"alg": alg})
        for alg in ("maskgit_plus", "topk_margin", "entropy")
    ),
]


@pytest.mark.parametrize(
    ("family", "block"), [("tiny_llada", None), ("tiny_llada", 6), ("tiny_dream", 6)]
)
@pytest.mark.parametrize(("decoder", "rule", "settings", "more"), WHOLE, ids=name_of)
def test_whole_decodings(request, canvases, family, decoder, rule, settings, more, block):
    denoiser = Denoiser.of(request.getfixturevalue(family))
    canvas, mask = canvases([5, 3], G)
    window = {} if block is None else {"block_length": block}
    options = options_of(decoder, settings, **more, **window)
    tokens, trace = denoise(denoiser, canvas, mask, options=options, start=5)
    rule = functools.partial(rule, **{k: v for k, v in settings.items() if k != "steps"})
    assert (trace.steps < G).any()
    assert (trace.steps > G // (block or G)).any()
    for row, length in enumerate((5, 3)):
        expected, when, steps = plain.decode(
            denoiser,
            canvas[row, 5 - length :],
            length,
            rule,
            block=block,
            steps=settings.get("steps"),
            kind=options.confidence,
            credit=plain.Credit() if decoder == "credit" else None,
        )
        assert trace.commit_step[row].tolist() == when
        assert tokens[row, 5 - length :].tolist() == expected.tolist()
        assert int(trace.steps[row]) == steps


GREEDY = [
    ("threshold", {"threshold": 1.0}),
    ("factor", {"factor": 0.0}),
    ("entropy-threshold", {"entropy_threshold": 0.0}),
    ("entropy-bound", {"entropy_bound": 0.0}),
    ("dinfer-threshold", {"threshold": 1.0}),
    ("credit", {"threshold": 1.0, "credit_weight": 0.0}),
    ("hierarchy", {"threshold": 1.0, "low_threshold": 1.0}),
    ("sdar", {"threshold": 1.0}),
    ("llada2", {"threshold": 1.0}),
    ("dream", {"alg": "maskgit_plus"}),
    ("nap", {}),
]
AT_ONCE = [
    ("threshold", {"threshold": 0.0}),
    ("factor", {"factor": 1000.0}),
    ("entropy-threshold", {"entropy_threshold": 100.0}),
    ("entropy-bound", {"entropy_bound": 1e6}),
    ("dinfer-threshold", {"threshold": 0.0}),
    ("credit", {"threshold": 0.0}),
    ("hierarchy", {"threshold": 0.0, "low_threshold": 0.0}),
    ("sdar", {"threshold": 0.0}),
    ("llada2", {"threshold": 0.0}),
]


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize(("decoder", "settings"), GREEDY, ids=name_of)
def test_a_bar_above_everything_is_greedy(tiny_llada, canvases, decoder, settings, block):
    if decoder == "nap" and block:
        return
    canvas, mask = canvases([5, 3], G)
    window = {} if block is None else {"block_length": block}
    kind = "neg_entropy" if decoder in ENTROPY else "prob"
    greedy = options_of("low-confidence", {"confidence": kind}, **window)
    a, plain_trace = denoise(tiny_llada, canvas, mask, options=greedy, start=5)
    options = options_of(decoder, settings, **window)
    b, trace = denoise(tiny_llada, canvas, mask, options=options, start=5)
    assert torch.equal(a, b)
    assert torch.equal(trace.commit_step, plain_trace.commit_step)
    assert trace.forwards == G


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize(("decoder", "settings"), AT_ONCE, ids=name_of)
def test_a_bar_below_everything_takes_one_forward_per_window(
    tiny_llada, canvases, decoder, settings, block
):
    canvas, mask = canvases([5, 3], G)
    window = {} if block is None else {"block_length": block}
    options = options_of(decoder, settings, **window)
    _, trace = denoise(tiny_llada, canvas, mask, options=options, start=5)
    assert trace.forwards == (1 if block is None else G // block)


@pytest.mark.parametrize("block", [None, 4])
def test_edits_that_never_happen_cost_one_reading_per_block(tiny_llada, canvases, block):
    canvas, mask = canvases([5, 3], G)
    window = {} if block is None else {"block_length": block}
    bare = options_of("llada2", {"threshold": 0.2}, **window)
    edits = options_of("llada2.1", {"threshold": 0.2, "edit_threshold": 1.0}, **window)
    a, without = denoise(tiny_llada, canvas, mask, options=bare, start=5)
    b, reading = denoise(tiny_llada, canvas, mask, options=edits, start=5)
    assert torch.equal(a, b)
    assert torch.equal(reading.steps, without.steps + G // (block or G))
    # And none where none is asked for.
    none = options_of("llada2.1", {"threshold": 0.2, "max_post_steps": 0}, **window)
    _, trace = denoise(tiny_llada, canvas, mask, options=none, start=5)
    assert torch.equal(trace.steps, without.steps)


class Script:
    """A provider that gives logits out of a table [request, age, place from the end, V]."""

    forward, copies = SimpleNamespace(), 1

    def __init__(self, table):
        self.table = table

    def __call__(self, rows, index, position):
        from_end = position - rows.tokens.shape[1]
        return self.table[rows.request[index], rows.age[index], from_end].clone()


def test_sparse_credit_is_the_dense_matrix_and_stays_with_its_row():
    """Rows leave, change places, come in anew (the widest last) and enter windows; each keeps its
    own credit."""
    g = torch.Generator().manual_seed(0)
    vocab, widest = 6, 5
    # Half of the favourites stay, so that credit both grows and moves on.
    table = torch.randn(5, 8, widest, vocab, generator=g, dtype=torch.float64)
    table[:, :, ::2] += 1.5 * table[:, :1, ::2]
    sparse = CreditProvider(Script(table), 0.7, 0.2, 0.8)
    dense = {request: plain.Credit() for request in range(5)}
    present = [[0, 1], [0, 1], [1, 0, 2], [2, 1], [1, 2, 3], [3, 2], [4, 3, 2], [4, 2]]
    enters = {(1, 3), (2, 4)}  # (request, age) at which another window begins
    age, window_step, before = {}, {}, []
    for now in present:
        width = 5 if 4 in now else 4 if 3 in now else 3
        for r in now:
            age[r] = age.get(r, -1) + 1
            window_step[r] = 0 if (r, age[r]) in enters else window_step.get(r, -1) + 1
        pending = torch.rand(len(now), width, generator=g) < 0.7
        pending[:, -1] = True
        rows = rows_of(
            pending,
            request=torch.tensor(now),
            age=torch.tensor([age[r] for r in now]),
            window_step=torch.tensor([window_step[r] for r in now]),
            slot=torch.tensor([before.index(r) if r in before else -1 for r in now]),
        )
        index, position = pending.nonzero(as_tuple=True)
        got = sparse(rows, index, position + rows.start)
        for place, r in enumerate(now):
            where = (pending[place].nonzero()[:, 0] + widest - width).tolist()
            expected = dense[r](table[r, age[r]][where], where, widest, window_step[r] == 0)
            torch.testing.assert_close(got[index == place], expected, atol=1e-12, rtol=0)
        before = now


def test_a_mask_token_is_never_proposed_so_that_dinfer_cannot_hang(tiny_llada, canvases):
    """Where the model likes the mask token best."""
    head = tiny_llada.head

    def likes_masks(hidden):
        logits = head(hidden)
        logits[..., MASK] += 100
        return logits

    tiny_llada.head = likes_masks
    canvas, _ = canvases([4], G)
    for decoder in ("dinfer-threshold", "credit", "hierarchy"):
        tokens, trace = denoise(tiny_llada, canvas, options=options_of(decoder, {}), start=4)
        assert not (tokens == MASK).any()
        assert (tokens < VOCAB).all()
        assert trace.forwards <= G
