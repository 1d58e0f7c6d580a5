"""Parallel-forced decoding: against a plain allocator, and its exact invariants."""

import dataclasses
import math
from fractions import Fraction

import pytest
import torch

from tests.conftest import EOS, MASK
from tests.dlm import plain
from tests.dlm.test_rules import options_of
from whet.dlm.canvas import denoise
from whet.dlm.nap import Nap
from whet.dlm.provider import PlainProvider
from whet.errors import OptionError
from whet.models.denoiser import Denoiser

PROMPT = 3


def layout(lengths, header=1, prompt=PROMPT, seed=0):
    """A canvas with `header` given tokens before each slot, and the positions of the slots."""
    g = torch.Generator().manual_seed(seed)
    canvas = torch.randint(1, MASK, (prompt,), generator=g).tolist()
    slots = []
    for length in lengths:
        canvas += torch.randint(1, MASK, (header,), generator=g).tolist()
        slots.append(list(range(len(canvas), len(canvas) + length)))
        canvas += [MASK] * length
    return torch.tensor(canvas), slots


def shares(quota, left, tokens):
    """How many each slot gets: even turns over those that have any left, the last one to those
    with the fewest tokens."""
    got = dict.fromkeys(left, 0)
    while quota and any(left.values()):
        alive = sorted((j for j in left if left[j]), key=lambda j: (tokens[j], j))
        for j in alive[:quota]:
            got[j] += 1
            left[j] -= 1
        quota -= min(quota, len(alive))
    return got


def forced(denoiser, canvas, slots, quota, *, summary_start="1", threshold=None, logits=None):
    """One canvas whose last slot is the summary: (tokens, step of each position, steps)."""
    x, when, step = canvas.tolist(), [-1] * len(canvas), 0
    paths, last = slots[:-1], len(slots) - 1
    needed = Fraction(summary_start) * sum(map(len, paths))
    while masks := [p for slot in slots for p in slot if x[p] == MASK]:
        rows = torch.zeros(len(masks), dtype=torch.long)
        with torch.inference_mode():
            found = denoiser.logits(torch.tensor([x]), None, rows, torch.tensor(masks))
            if logits is not None:
                found = logits(found, torch.tensor(masks))
        found = {p: plain.confidence_of(r, "prob") for p, r in zip(masks, found, strict=True)}
        there = sum(x[p] != MASK for slot in paths for p in slot)
        open_ = [j for j in range(len(slots)) if j < last or there >= needed]
        tokens = {j: sum(x[p] != MASK for p in slots[j]) for j in open_}
        if last in tokens:
            tokens[last] += math.floor(needed / len(paths))
        queue = {j: plain.ordered({p: found[p][1] for p in slots[j] if p in found}) for j in open_}
        got = shares(quota, {j: len(queue[j]) for j in open_}, tokens)
        for j in open_:
            for n, p in enumerate(queue[j]):
                if n < got[j] or (threshold is not None and found[p][1] >= threshold):
                    x[p], when[p] = found[p][0], step
        if logits is not None:  # eos=early_stop
            for slot in slots:
                ends = [p for p in slot if x[p] == EOS]
                for p in slot:
                    if ends and p > ends[0] and x[p] == MASK:
                        x[p], when[p] = EOS, step
        step += 1
    return x, when, step


CASES = [
    ([5, 5, 5, 3], {"steps": 18}),
    ([5, 5, 5, 3], {"steps": 9}),
    ([5, 5, 5, 3], {"steps": 5}),
    ([5, 5, 5, 3], {"steps": 2}),
    ([5, 5, 5, 3], {}),
    ([7, 3, 5, 2], {"steps": 6}),
    ([1, 6, 4], {"steps": 4}),
    ([6, 6, 4], {"steps": 6, "summary_start": 0}),
    ([6, 6, 4], {"steps": 8, "summary_start": 0.5}),
    ([7, 3, 4], {"steps": 5, "summary_start": 0.3}),
    ([5, 5, 5, 3], {"steps": 9, "threshold": 0.15}),
    ([6, 6, 4], {"steps": 8, "threshold": 0.1, "summary_start": 0.5}),
]


def ids(case):
    lengths, settings = case
    return f"{lengths}-" + ",".join(f"{k}={v}" for k, v in settings.items())


def quota_of(lengths, settings):
    return math.ceil(sum(lengths) / settings.get("steps", sum(lengths) + len(lengths)))


@pytest.mark.parametrize("case", CASES, ids=ids)
@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_it_is_the_plain_allocator(request, family, case):
    lengths, settings = case
    denoiser = Denoiser.of(request.getfixturevalue(family))
    canvas, slots = layout(lengths)
    options = options_of("nap", settings)
    tokens, trace = denoise(denoiser, canvas[None], options=options, start=PROMPT)
    quota = quota_of(lengths, settings)
    others = {k: v for k, v in settings.items() if k == "threshold"}
    start = str(settings.get("summary_start", 1))
    x, when, steps = forced(denoiser, canvas, slots, quota, summary_start=start, **others)
    assert trace.commit_step[0].tolist() == when[PROMPT:]
    assert tokens[0].tolist() == x
    assert trace.forwards == steps
    if "threshold" in settings:
        _, _, slower = forced(denoiser, canvas, slots, quota, summary_start=start)
        assert steps < slower


@pytest.mark.parametrize("steps", [12, 6, 4, 3])
def test_one_path_without_summary_is_plain_confidence_decoding(tiny_llada, canvases, steps):
    canvas, mask = canvases([5, 3], 12)
    settings = {"steps": steps}
    a, plain_trace = denoise(
        tiny_llada, canvas, mask, options=options_of("low-confidence", settings), start=5
    )
    for summary in (True, False):  # a single slot is no summary
        options = options_of("nap", settings, summary=summary)
        b, trace = denoise(tiny_llada, canvas, mask, options=options, start=5)
        assert torch.equal(a, b)
        assert torch.equal(trace.commit_step, plain_trace.commit_step)


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 7, 10, 20])
@pytest.mark.parametrize("paths", [2, 3])
def test_equal_paths_advance_together(tiny_llada, paths, steps):
    length, summary = 6, 4
    lengths = [length] * paths + [summary]
    canvas, slots = layout(lengths, header=2)
    quota = math.ceil(sum(lengths) / steps)
    options = options_of("nap", {"steps": steps})
    tokens, trace = denoise(tiny_llada, canvas[None], options=options, start=PROMPT)
    given = canvas != MASK
    assert torch.equal(tokens[0][given], canvas[given])
    assert not (tokens == MASK).any()
    assert trace.forwards == math.ceil(paths * length / quota) + math.ceil(summary / quota)
    when = [trace.commit_step[0, [p - PROMPT for p in slot]] for slot in slots]
    assert max(max(w.tolist()) for w in when[:-1]) < int(when[-1].min())
    ends = [int(w.max()) for w in when[:-1]]
    assert max(ends) - min(ends) <= max(1, math.ceil(paths / quota) - 1)
    before = [0] * paths
    for step in range(min(ends) + 1):
        counts = [int((w <= step).sum()) for w in when[:-1]]
        open_ = [n for n in counts if n < length]
        assert not open_ or max(open_) - min(open_) <= 1
        if quota >= paths:
            assert all(now > was for now, was in zip(counts, before, strict=True))
        before = counts


@pytest.mark.parametrize(
    ("start", "path", "quota"), [("0.6", 25, 5), ("0.07", 100, 7), ("0.57", 100, 19)]
)
def test_the_summary_starts_when_its_part_is_there(tiny_llada, start, path, quota):
    """0.6 of 25 are 15, whatever floating point makes of it; then both go on side by side."""
    wide = dataclasses.replace(Denoiser.of(tiny_llada), context_length=1000)

    class Cheap(PlainProvider):
        def __call__(self, rows, index, position):
            return -((position[:, None] - torch.arange(6)) % 6).double()

    summary = quota - path % quota + quota
    canvas = torch.full((1, path + summary), MASK)
    settings = {"regions": f"{path}+{summary}", "steps": (path + summary) // quota}
    options = options_of("nap", settings, summary_start=start)
    _, trace = denoise(wide, canvas, options=options, make_provider=Cheap)
    first = int(Fraction(start) * path) // quota
    counts = torch.bincount(trace.commit_step[0, path:], minlength=first + 1).tolist()
    assert counts[: first + 1] == [0] * first + [quota // 2]


def test_lengths_in_regions_are_the_runs_between_headers(tiny_llada):
    """A region may begin with what is given; what is given is never touched."""
    canvas, _ = layout([5, 5, 3])
    runs, runs_trace = denoise(
        tiny_llada, canvas[None], options=options_of("nap", {"steps": 4}), start=PROMPT
    )
    named = options_of("nap", {"steps": 4, "regions": "6+6+4"})
    tokens, trace = denoise(tiny_llada, canvas[None], options=named, start=PROMPT)
    assert torch.equal(tokens, runs)
    assert torch.equal(trace.commit_step, runs_trace.commit_step)
    # Without headers the same lengths cut one long run.
    bare, slots = layout([5, 5, 3], header=0)
    named = options_of("nap", {"steps": 4, "regions": "5+5+3"})
    tokens, trace = denoise(tiny_llada, bare[None], options=named, start=PROMPT)
    x, when, steps = forced(Denoiser.of(tiny_llada), bare, slots, 4)
    assert (tokens[0].tolist(), trace.commit_step[0].tolist()) == (x, when[PROMPT:])
    assert trace.forwards == steps


def bias(logits, position):
    """EOS is likely in places, so that some paths end early."""
    logits[:, EOS] += torch.where(position % 4 == 1, 6.0, -6.0)
    return logits


class Ending(PlainProvider):
    def __call__(self, rows, index, position):
        return bias(super().__call__(rows, index, position), position)


@pytest.mark.parametrize("steps", [24, 8, 4])
@pytest.mark.parametrize("lengths", [[8, 8, 8], [9, 5, 6, 4]])
def test_what_follows_an_end_is_ended_and_its_quota_handed_over(tiny_llada, lengths, steps):
    canvas, slots = layout(lengths)
    options = options_of("nap", {"steps": steps, "eos": "early_stop"})
    tokens, trace = denoise(
        tiny_llada, canvas[None], options=options, start=PROMPT, make_provider=Ending
    )
    quota = math.ceil(sum(lengths) / steps)
    x, when, forwards = forced(Denoiser.of(tiny_llada), canvas, slots, quota, logits=bias)
    assert (tokens[0].tolist(), trace.commit_step[0].tolist()) == (x, when[PROMPT:])
    assert trace.forwards == forwards
    plain_options = dataclasses.replace(options, eos="none")
    _, slow = denoise(
        tiny_llada, canvas[None], options=plain_options, start=PROMPT, make_provider=Ending
    )
    assert trace.forwards < slow.forwards
    given = canvas != MASK
    assert torch.equal(tokens[0][given], canvas[given])


def test_an_end_that_was_given_ends_nothing(tiny_llada):
    canvas, _ = layout([4, 4, 4])
    canvas[[PROMPT, PROMPT + 7]] = EOS  # a header's, and one in the middle of a region
    for regions in ({}, {"regions": "5+5+5"}):
        runs = [
            denoise(
                tiny_llada,
                canvas[None],
                options=options_of("nap", {"eos": eos, **regions}),
                start=PROMPT,
            )
            for eos in ("none", "early_stop")
        ]
        assert int((runs[0][0] == EOS).sum()) == 2  # none was proposed
        assert torch.equal(runs[0][0], runs[1][0])


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": "6"},
        {"steps": "6", "eos": "early_stop", "threshold": "0.2"},
        {"temperature": "0.8", "seed": "2", "summary_start": "0.5"},
        {"steps": "5", "cache": "dual"},
        {"steps": "9", "cfg_scale": "0.5"},
    ],
    ids=lambda s: ",".join(s),
)
@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_a_batch_of_layouts_equals_each_alone(request, family, settings):
    model = request.getfixturevalue(family)
    cuts, prompts = [[4, 4, 4, 3], [8, 5, 3], [16]], [5, 2, 3]
    alone = []
    for row, (lengths, prompt) in enumerate(zip(cuts, prompts, strict=True)):
        # Every region is 19 wide: the headers take what the slots leave.
        canvas, _ = layout(lengths, header=1, prompt=prompt, seed=row)
        filler = torch.full((prompt + 19 - len(canvas),), 5)
        alone.append(torch.cat((canvas[:prompt], filler, canvas[prompt:])))
    longest = max(map(len, alone))
    batch = torch.stack([torch.nn.functional.pad(c, (longest - len(c), 0)) for c in alone])
    mask = torch.stack([torch.arange(longest) >= longest - len(c) for c in alone])
    options = options_of("nap", settings)
    tokens, trace = denoise(model, batch, mask, options=options, start=5)
    for row, canvas in enumerate(alone):
        single, own = denoise(
            model, canvas[None], options=options, start=prompts[row], requests=[row]
        )
        assert single[0].tolist() == tokens[row, longest - len(canvas) :].tolist()
        assert own.commit_step[0].tolist() == trace.commit_step[row].tolist()
        assert int(own.steps[0]) == int(trace.steps[row])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"block_length": 4}, "block_length=4: windows filled left to right defeat paths"),
        ({"cache": "prefix"}, "cache=prefix freezes what lies on the left"),
        ({"cache": "block"}, "cache=block freezes what lies on the left"),
        ({"regions": "8+x"}, r"regions='8\+x' must be lengths above 0 joined by \+, as 8\+8\+4"),
        ({"regions": "8+0"}, r"regions='8\+0' must be lengths above 0"),
        ({"regions": ""}, "regions='' must be lengths above 0"),
        ({"regions": "8++4"}, "must be lengths above 0"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"summary_start": 1.5}, "summary_start=1.5 must be between 0 and 1"),
        ({"summary_start": math.nan}, "summary_start=nan must be between 0 and 1"),
        ({"threshold": 1.5}, "threshold=1.5 is outside the range of confidence='prob'"),
    ],
)
def test_refusals(settings, says):
    with pytest.raises(OptionError, match=says):
        Nap(**settings)


def test_refusals_of_canvas_and_model(tiny_llada, canvases):
    canvas, _ = canvases([4], 12)
    with pytest.raises(OptionError, match=r"regions=8\+5 sum to 13, there are 12 columns"):
        denoise(tiny_llada, canvas, options=Nap(regions="8+5"), start=4)
    causal = dataclasses.replace(Denoiser.of(tiny_llada), block_length=4)
    with pytest.raises(OptionError, match=r"this one is block-causal \(blocks of 4\)"):
        denoise(causal, canvas, options=Nap(), start=4)
