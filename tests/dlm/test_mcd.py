"""Masked consistency distillation: exact properties of its loss, its teacher and its rounds."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import EOS, MASK
from whet.data.mixture import ResponseBatch
from whet.dlm.mcd import (
    Jump,
    McdRecipe,
    McdTraining,
    RoundSchedule,
    consistency_loss,
    jump_times,
    whole,
)
from whet.errors import CheckpointError, InputError, OptionError
from whet.fit import fit
from whet.models.denoiser import Denoiser
from whet.rng import keyed

B, L = 6, 10


def recipe(steps=6, **mcd):
    return McdRecipe.model_validate(
        {
            "method": "mcd",
            "init": "nowhere",
            "text": {"path": "nowhere.txt", "length": L, "batch_size": B},
            "mcd": {"resolution": 8, "round_steps": 2, **mcd},
            "fit": {
                "steps": steps,
                "learning_rate": 0.01,
                "warmup": 1,
                "ema": 0.5,
                "checkpoint_every": 100,
            },
        }
    )


def windows(step):
    ids = keyed(0, "ids", step).integers(1, MASK, (B, L))
    return [whole(torch.from_numpy(ids))]


def training(model, steps=6, draw_batch=windows, **mcd):
    return McdTraining(
        recipe(steps, **mcd), start=(copy.deepcopy(model), None), draw_batch=draw_batch
    )


def prompted(step):
    """Two sub-batches of different widths: padding, a prompt and a response of four."""
    parts = []
    for width, rows in ((7, 2), (9, 3)):
        ids = torch.from_numpy(keyed(1, "ids", step, width).integers(1, MASK, (rows, width)))
        real = torch.ones_like(ids, dtype=torch.bool)
        real[0, :2] = False
        response = torch.zeros_like(real)
        response[:, -4:] = True
        parts.append(ResponseBatch(ids.masked_fill(~real, EOS), real, response))
    return parts


def subs_logprobs(logits, canvas):
    """MDLM's SUBS (arXiv 2406.07524): never a mask, and certain where the canvas is filled."""
    blocked = logits.clone()
    blocked[..., MASK] = -torch.inf
    certain = torch.full_like(logits, -torch.inf).scatter(-1, canvas[..., None], 0.0)
    masked = (canvas == MASK)[..., None]
    return torch.where(masked, blocked.log_softmax(-1), certain)


def dense(model, tokens, masked):
    """SUBS log-probabilities [B, L, V] of a whole batch, one row at a time."""
    canvas = tokens.masked_fill(masked, MASK)
    logits = torch.cat([model(row[None]).logits for row in canvas])
    return subs_logprobs(logits, canvas)


def test_the_loss_is_the_forward_kl_between_what_both_canvases_say(tiny_llada):
    """Against the definition on dense log-probabilities of everything, 0 at filled positions."""
    method = training(tiny_llada)
    with torch.no_grad():  # a teacher that differs
        for p in method.teacher.parameters():
            p.add_(0.1 * torch.randn(p.shape, dtype=p.dtype, generator=seeded()))
    batch = method.batch(4)
    [jump] = batch
    student = dense(method.model, jump.part.tokens, jump.at_t)
    teacher = dense(method.teacher, jump.part.tokens, jump.at_s)
    p = teacher.exp()
    kl = torch.where(p > 0, p * (teacher - student), 0.0).sum(-1)
    assert float(kl[~jump.at_t].detach().abs().max()) == 0
    assert bool((jump.at_t & ~jump.at_s).any())
    loss, _ = method.loss(batch, "model")
    torch.testing.assert_close(loss, kl[jump.at_t].mean(), atol=1e-12, rtol=0)


def seeded():
    return torch.Generator().manual_seed(0)


def test_at_time_zero_the_loss_is_plain_cross_entropy(tiny_llada):
    method = training(tiny_llada)
    [jump] = method.batch(0)
    jump = Jump(jump.part, jump.levels, torch.zeros_like(jump.at_s), jump.at_t, jump.noise)
    loss, _ = method.loss([jump], "model")
    tokens = jump.part.tokens
    logits = method.model(tokens.masked_fill(jump.at_t, MASK)).logits
    logits[..., MASK] = -torch.inf
    expected = F.cross_entropy(logits[jump.at_t], tokens[jump.at_t])
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_without_a_jump_student_and_teacher_agree(tiny_llada, divergence):
    method = training(tiny_llada, divergence=divergence, resolution=2**40)
    [jump] = batch = method.batch(0)
    assert torch.equal(jump.at_s, jump.at_t)
    loss, _ = method.loss(batch, "model")
    assert abs(float(loss.detach())) < 1e-12
    loss.backward()
    largest = max(float(p.grad.abs().max()) for p in method.model.parameters())
    assert largest < 1e-10


def test_reverse_kl_is_taken_where_both_are_masked_and_data_elsewhere():
    g = seeded()
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64, generator=g)
    targets, shown = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([True, False, True, False, False])
    teacher[shown] = torch.nan  # never looked at
    q, p = student.log_softmax(-1), teacher.log_softmax(-1)
    for weight in (0.0, 0.3):
        found = consistency_loss(
            student, teacher, targets, shown, divergence="reverse", data_weight=weight
        )
        expected = torch.where(
            shown,
            -weight * q.gather(-1, targets[:, None])[:, 0],
            (q.exp() * (q - p)).sum(-1),
        )
        torch.testing.assert_close(found, expected)


def test_times_are_dt_apart_spread_evenly_and_the_last_piece_is_all_masked():
    rows, dt = 4000, 0.25
    s, t = jump_times(keyed(0), rows, dt)
    torch.testing.assert_close(t - s, torch.full_like(t, dt), atol=1e-15, rtol=0)
    assert float((t == 1).double().mean()) == pytest.approx(dt, abs=1 / rows)
    below = t[t < 1].sort().values
    spacing = (below - dt) * rows
    assert bool((spacing.floor() == torch.arange(len(below))).all())
    s, t = jump_times(keyed(0), 5, 1.0)
    assert (s.tolist(), t.tolist()) == ([0.0] * 5, [1.0] * 5)


def test_the_jump_doubles_after_every_round():
    schedule = RoundSchedule(round_steps=3, resolution=16)
    assert [schedule.dt(k) * 16 for k in range(9)] == [1, 1, 1, 2, 2, 2, 4, 4, 4]
    assert [k for k in range(9) if schedule.ends(k)] == [2, 5, 8]
    schedule.check(15)
    with pytest.raises(OptionError, match=r"fit\.steps=16 makes 6 rounds"):
        schedule.check(16)


@pytest.mark.parametrize("targets", ["mcd", "sdtt"])
def test_the_teacher_gets_no_gradient_and_becomes_the_student_bit_by_bit(
    tiny_llada, tmp_path, targets
):
    method = training(tiny_llada, steps=3, targets=targets)
    start = copy.deepcopy(method.teacher.state_dict())
    seen = {}

    def note(step, after=method.after_step):
        after(step)
        seen[step] = (same(method.teacher, start), same(method.teacher, method.model.state_dict()))

    method.after_step = note
    fit(method, method.recipe.fit, run=tmp_path, identity={})
    assert seen == {0: (True, False), 1: (False, True), 2: (False, False)}
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    shared = {p.data_ptr() for p in method.model.parameters()}
    assert not shared & {p.data_ptr() for p in method.teacher.parameters()}


def same(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_the_teacher_may_be_the_average(tiny_llada, tmp_path):
    method = training(tiny_llada, steps=2, teacher_average=True)
    fit(method, method.recipe.fit, run=tmp_path, identity={})
    average = method.players["model"].ema.average
    assert all(torch.equal(p, average[n]) for n, p in method.teacher.named_parameters())
    assert not same(method.teacher, method.model.state_dict())


@pytest.mark.parametrize("targets", ["mcd", "sdtt", "plain"])
def test_a_run_that_was_stopped_in_a_round_ends_as_one_that_was_not(tiny_llada, tmp_path, targets):
    whole_run = training(tiny_llada, targets=targets)
    fit(whole_run, whole_run.recipe.fit, run=tmp_path / "whole", identity={})
    first = training(tiny_llada, targets=targets)
    halfway = first.recipe.fit.model_copy(update={"steps": 3})
    fit(first, halfway, run=tmp_path / "parts", identity={})
    second = training(tiny_llada, targets=targets)
    fit(second, second.recipe.fit, run=tmp_path / "parts", identity={})
    assert same(second.model, whole_run.model.state_dict())
    if targets != "plain":
        assert same(second.teacher, whole_run.teacher.state_dict())
        assert not same(second.teacher, second.model.state_dict()) or second.schedule.ends(5)


def test_a_damaged_teacher_is_refused(tiny_llada, tmp_path):
    method = training(tiny_llada, steps=1)
    fit(method, method.recipe.fit, run=tmp_path, identity={})
    other = training(tiny_llada, steps=2)
    other.teacher = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        fit(other, other.recipe.fit, run=tmp_path, identity={})


def test_prompts_and_padding_are_never_masked_and_never_seen(tiny_llada):
    method = training(tiny_llada, draw_batch=prompted)
    batch = method.batch(3)
    assert [len(jump.at_t) for jump in batch] == [2, 3]
    for jump in batch:
        assert not bool((jump.at_t & ~jump.part.response).any())
        assert not bool((jump.at_s & ~jump.at_t).any())
    before = method.loss(batch, "model")[0]
    for jump in batch:
        jump.part.tokens[~jump.part.attention_mask] = 17
    torch.testing.assert_close(method.loss(batch, "model")[0], before, atol=1e-12, rtol=0)
    assert method.tokens(batch) == (7 + 5) + (9 + 9 + 7)


@pytest.mark.parametrize("targets", ["mcd", "sdtt", "plain"])
def test_a_batch_may_be_cut(tiny_llada, targets):
    method = training(tiny_llada, draw_batch=prompted, targets=targets)
    batch = method.batch(1)
    expected, _ = method.loss(batch, "model")
    parts = method.split(batch, "model", 2)
    assert len(parts) == 2
    assert sum(share for _, share in parts) == pytest.approx(1)
    found = sum(share * method.loss(part, "model")[0] for part, share in parts)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_sdtt_reads_its_own_tokens_and_its_first_look_where_it_reveals(tiny_llada):
    method = training(tiny_llada, steps=2, targets="sdtt", divergence="reverse", resolution=2)
    [jump] = batch = method.batch(0)
    tokens, at_s, at_t = jump.part.tokens, jump.at_s, jump.at_t
    look = dense(method.teacher, tokens, at_t)
    # Another way to draw: walk along the cumulated probabilities.
    drawn = (look.exp().cumsum(-1) <= jump.noise[..., None]).sum(-1)
    made = torch.where(at_t, drawn, tokens)
    target = torch.where((at_t & ~at_s)[..., None], look, dense(method.teacher, made, at_s))
    student = dense(method.model, tokens, at_t)
    q = student.exp()
    kl = torch.where(q > 0, q * (student - target), 0.0).sum(-1)
    assert not torch.equal(made, tokens)
    torch.testing.assert_close(method.loss(batch, "model")[0], kl[at_t].mean(), atol=1e-12, rtol=0)


def test_plain_targets_are_those_of_masked_training(tiny_llada):
    method = training(tiny_llada, targets="plain")
    assert method.teacher is None
    [jump] = batch = method.batch(0)
    tokens = jump.part.tokens
    logits = Denoiser.of(method.model).suppress(
        method.model(tokens.masked_fill(jump.at_t, MASK)).logits.flatten(0, 1)
    )
    nats = F.cross_entropy(logits, tokens.flatten(), reduction="none").view(B, L)
    expected = ((nats * jump.at_t).sum(-1) / jump.levels.double() / L).mean()
    torch.testing.assert_close(method.loss(batch, "model")[0], expected, atol=1e-7, rtol=1e-6)


def test_a_batch_in_which_nothing_is_masked_has_a_loss_of_zero(tiny_llada):
    method = training(tiny_llada)
    [jump] = method.batch(0)
    none = torch.zeros_like(jump.at_t)
    loss, _ = method.loss([Jump(jump.part, jump.levels, none, none, jump.noise)], "model")
    assert float(loss.detach()) == 0
    loss.backward()


def test_block_causal_models_are_refused(tiny_sdar):
    with pytest.raises(OptionError, match=r"is block-causal \(blocks of 4\)"):
        training(tiny_sdar)


def test_the_first_token_of_a_text_is_given_to_a_shifted_model(tiny_dream, tmp_path, monkeypatch):
    monkeypatch.setattr("whet.dlm.mcd.TextWindows", lambda *a, **k: Fixed())
    method = McdTraining(recipe(), start=(tiny_dream, None))
    [jump] = method.batch(0)
    assert not bool(jump.at_t[:, 0].any())
    assert bool(jump.at_t[:, 1:].any())
    method.loss([jump], "model")[0].backward()


class Fixed:
    """Windows of random ids."""

    def batch(self, step):
        return windows(step)[0].tokens


TASKS = """
method: mcd
init: tiny-dlm
data:
  tasks: {sort: 1.0, queens: 1.0}
  gen_lengths: {16: 1.0}
  batch_size: 4
mcd: {resolution: 8, round_steps: 1}
fit: {steps: 2, learning_rate: 0.0001, warmup: 0, ema: 0.0}
"""


def test_a_recipe_distils_a_checkpoint_on_its_tasks(tmp_path):
    import whet

    path = tmp_path / "recipe.yaml"
    path.write_text(TASKS)
    McdTraining(McdRecipe.read(path, method="mcd")).run(tmp_path / "run")
    model, tokenizer = whet.load(tmp_path / "run" / "model")
    before, _ = whet.load("tiny-dlm")
    assert len(tokenizer) <= model.config.vocab_size
    assert not same(model, before.state_dict())


def test_a_recipe_distils_on_a_text_file(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("sorting is easy, queens are hard. " * 40)
    made = json.loads(json.dumps(recipe().model_dump(mode="json")))
    made |= {"init": "tiny-dlm", "text": {"path": str(text), "length": 24, "batch_size": 3}}
    method = McdTraining(McdRecipe.model_validate(made))
    [jump] = method.batch(0)
    assert jump.part.tokens.shape == (3, 24)
    assert method.tokens([jump]) == 72
    assert float(method.loss([jump], "model")[0].detach()) > 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gen_lengths: {16: 1.0}", "gen_lengths: null", "needs data.gen_lengths"),
        ("data:", "data: null\nnothing:", "unknown key 'nothing'"),
        (TASKS[TASKS.index("data:") : TASKS.index("mcd: {")], "", "needs data .* or text"),
        ("mcd: {", "text: {path: a, length: 9}\nmcd: {", "and not both"),
        ("steps: 2", "steps: 9", "makes 9 rounds of mcd.round_steps=1"),
        ("round_steps: 1", "round_step: 1", r"unknown key 'mcd.round_step': did you mean"),
        ("resolution: 8", "resolution: 1", "mcd.resolution: .*greater than 1"),
        ("method: mcd", "method: masked", "it is for 'masked', not 'mcd'"),
    ],
)
def test_bad_recipes_are_refused_in_a_sentence(tmp_path, old, new, message):
    assert old in TASKS
    path = tmp_path / "recipe.yaml"
    path.write_text(TASKS.replace(old, new))
    with pytest.raises(InputError, match=message):
        McdRecipe.read(path, method="mcd")
