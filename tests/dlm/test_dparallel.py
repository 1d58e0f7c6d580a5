import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from pydantic import ValidationError

from tests.conftest import EOS, MASK, VOCAB
from whet import rng, zoo
from whet.data.trajectories import Trajectories, Trajectory
from whet.dlm.canvas import denoise
from whet.dlm.dparallel import (
    Answerer,
    DParallelRecipe,
    DParallelTraining,
    OwnAnswers,
    certainty_forcing,
    complementary_masks,
    read_answers,
    record_answers,
)
from whet.dlm.dparallel.answers import _problems, collate
from whet.dlm.entropy import EntropyThreshold
from whet.dlm.low_confidence import LowConfidence
from whet.dlm.texts import generate_texts
from whet.errors import CheckpointError, InputError, OptionError
from whet.models.denoiser import unwrap
from whet.zoo import load

# --- masks --------------------------------------------------------------------------------------


def ragged(lengths, before=3, width=14):
    """Responses of several lengths behind `before` prompt tokens, [B, L]."""
    response = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, n in enumerate(lengths):
        response[row, before : before + n] = True
    return response


LENGTHS = [11, 4, 7, 8, 1, 10]


def drawn(seed, lengths=LENGTHS, **options):
    return complementary_masks(rng.keyed(seed, "masks"), ragged(lengths), **options)


@pytest.mark.parametrize("block_length", [1, 3, 4, 20, None])
def test_the_two_sets_are_a_window_and_what_follows_it_is_masked_in_both(block_length):
    for seed in range(40):
        masks = drawn(seed, block_length=block_length)
        assert not (masks.first & masks.second).any()
        window = masks.first | masks.second
        assert not (window & masks.future).any()
        assert not (window | masks.future)[~ragged(LENGTHS)].any(), "prompts stay clean"
        for row, n in enumerate(LENGTHS):
            inside = window[row].nonzero()[:, 0].tolist()
            assert inside, "a window is never empty"
            lo, hi = inside[0] - 3, inside[-1] + 1 - 3
            assert inside == list(range(lo + 3, hi + 3)), "a window is a run"
            if block_length is None:
                assert (lo, hi) == (0, n)
            else:
                assert lo % block_length == 0
                assert hi == min(lo + block_length, n)
            assert masks.future[row].nonzero()[:, 0].tolist() == list(range(hi + 3, n + 3))


def test_every_block_of_every_row_is_drawn_equally_often():
    counts = np.zeros((2, 3))
    for seed in range(1500):
        masks = drawn(seed, lengths=[11, 8], block_length=4)
        window = masks.first | masks.second
        for row in range(2):
            counts[row, (int(window[row].nonzero()[0]) - 3) // 4] += 1
    assert counts[0] == pytest.approx(np.full(3, 500), abs=80)
    assert counts[1] == pytest.approx([750, 750, 0], abs=90)


def test_the_official_draw_has_an_empty_window_behind_whole_blocks():
    empty = {11: 0, 8: 0}
    for seed in range(600):
        masks = drawn(seed, lengths=[11, 8], block_length=4, official=True)
        for row, n in enumerate(empty):
            if not (masks.first | masks.second)[row].any():
                empty[n] += 1
                assert not masks.future[row].any()
    assert empty[11] == 0
    assert empty[8] == pytest.approx(200, abs=50)


@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_the_first_set_has_its_share_position_by_position(ratio):
    share = (1 - 1e-3) * ratio + 1e-3
    found = sum(
        drawn(s, lengths=[10] * 40, mask_ratio=ratio, block_length=None).first for s in range(50)
    )
    assert found[:, 3:13].sum(0) / 2000 == pytest.approx(np.full(10, share), abs=0.05)


def test_without_a_ratio_every_row_draws_its_own():
    masks = [drawn(s, lengths=[40] * 40, mask_ratio=None, block_length=None) for s in range(10)]
    shares = torch.cat([m.first.sum(-1) / (m.first | m.second).sum(-1) for m in masks]).numpy()
    # Uniform between 0 and 1: mean 1/2, variance 1/12 and the 1/6 / 40 of what a row draws.
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    assert shares.var() == pytest.approx(1 / 12 + 1 / 240, abs=0.015)


def test_focus_shifts_the_shares():
    data = OwnAnswers(tasks=["queens", "sort"], count=40, gen_length=16)
    assert data.shares() == {"queens": 1, "sort": 1}
    focused = data.model_copy(update={"focus": {"queens": 3.0}})
    assert focused.shares() == {"queens": 3, "sort": 1}
    for settings, queens in ((data, 20), (focused, 30)):
        asked = _problems(settings, 1)
        assert len(asked) == 40
        assert sum(a.source == "queens" for a in asked) == queens
    with pytest.raises(ValidationError, match="focus: 'quens' is not asked: did you mean 'queens'"):
        OwnAnswers(tasks=["queens"], count=4, gen_length=16, focus={"quens": 2.0})


# --- loss ---------------------------------------------------------------------------------------


def some_logits(n=9, v=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, v, generator=generator, dtype=torch.float64) * 2
    targets = logits.argmax(-1)
    targets[::3] = (targets[::3] + 1) % v  # every third is wrong
    return logits, targets, torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])[:n]


def by_hand(logits, targets, rows, count, beta, temperature):
    """The loss of each set in plain loops."""
    out = []
    for row in range(count):
        nats, unsure = [], []
        for i in [i for i, r in enumerate(rows.tolist()) if r == row]:
            p = torch.softmax(logits[i], -1)
            nats.append(-p[targets[i]].log())
            if int(logits[i].argmax()) == int(targets[i]):
                q = torch.softmax(logits[i] / temperature, -1)
                unsure.append(-(q * q.log()).sum())
        total = torch.zeros((), dtype=logits.dtype)
        if nats:
            total = total + sum(nats) / len(nats)
        if unsure:
            total = total + beta * sum(unsure) / len(unsure)
        out.append(total)
    return torch.stack(out)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_loss_and_its_gradient_are_those_of_plain_loops(beta, temperature):
    logits, targets, rows = some_logits()
    one, two = (logits.clone().requires_grad_() for _ in range(2))
    mine, _ = certainty_forcing(one, targets, rows, 4, beta=beta, temperature=temperature)
    theirs = by_hand(two, targets, rows, 4, beta, temperature)
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)
    assert mine[3] == 0, "an empty set"
    mine.sum().backward()
    theirs.sum().backward()
    torch.testing.assert_close(one.grad, two.grad, atol=1e-12, rtol=0)


def test_without_beta_it_is_cross_entropy():
    logits, targets, _ = some_logits()
    rows = torch.zeros(len(targets), dtype=torch.long)
    loss, _ = certainty_forcing(logits, targets, rows, 1, beta=0.0)
    torch.testing.assert_close(loss[0], F.cross_entropy(logits, targets), atol=1e-12, rtol=0)


def test_only_right_positions_have_an_entropy():
    logits, targets, _ = some_logits()
    rows = torch.zeros(len(targets), dtype=torch.long)

    def term(which):
        with_it, numbers = certainty_forcing(logits, which, rows, 1, beta=1.0)
        without, _ = certainty_forcing(logits, which, rows, 1, beta=0.0)
        assert numbers["right"] == pytest.approx(
            float((logits.argmax(-1) == which).double().mean())
        )
        return float(with_it - without), numbers["entropy"]

    q = torch.softmax(logits / 0.5, -1)
    each = -(q * q.log()).sum(-1)
    right = logits.argmax(-1) == targets
    assert term(targets) == pytest.approx([float(each[right].mean())] * 2)
    flipped = targets.clone()
    flipped[1] = (flipped[1] + 1) % 7
    kept = right.clone()
    kept[1] = False
    assert term(flipped)[0] == pytest.approx(float(each[kept].mean()))


def test_with_nothing_right_the_loss_is_cross_entropy_and_gradients_are_finite():
    logits, _, rows = some_logits()
    wrong = (logits.argmax(-1) + 1) % 7
    logits.requires_grad_()
    loss, numbers = certainty_forcing(logits, wrong, rows, 3, beta=2.0)
    plain, _ = certainty_forcing(logits, wrong, rows, 3, beta=0.0)
    assert torch.equal(loss, plain)
    assert numbers["entropy"] == 0
    assert numbers["right"] == 0
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_nothing_masked_at_all_is_a_loss_of_zero():
    logits = torch.zeros(0, 7, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    loss, numbers = certainty_forcing(logits, none, none, 2, beta=2.0)
    assert loss.tolist() == [0, 0]
    assert all(map(math.isfinite, numbers.values()))
    loss.sum().backward()


def test_the_entropy_is_bounded_and_less_at_a_lower_temperature():
    logits, _, rows = some_logits()
    targets = logits.argmax(-1)
    values = []
    for temperature in (0.5, 1.0):
        options = {"temperature": temperature}
        loss, _ = certainty_forcing(logits, targets, rows, 3, beta=1.0, **options)
        plain, _ = certainty_forcing(logits, targets, rows, 3, beta=0.0, **options)
        values.append(loss - plain)
    assert (values[0] < values[1]).all()
    assert (values[1] <= math.log(7)).all()


def test_certain_and_right_logits_cost_nothing():
    targets = torch.tensor([1, 4, 2])
    rows = torch.tensor([0, 0, 1])
    losses = [
        float(
            certainty_forcing(margin * F.one_hot(targets, 7).double(), targets, rows, 2, beta=2.0)[
                0
            ].sum()
        )
        for margin in (4, 12, 60)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-12


def test_impossible_tokens_do_no_harm():
    logits, targets, rows = some_logits()
    logits[:, 6] = -torch.inf
    targets = logits.argmax(-1)
    logits.requires_grad_()
    loss, _ = certainty_forcing(logits, targets, rows, 3, beta=2.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


# --- batches ------------------------------------------------------------------------------------


def answer(number, prompt, tokens, correct=True):
    return Trajectory(
        request=number,
        source="test",
        prompt="?",
        prompt_ids=prompt,
        tokens=tokens,
        commit_step=list(range(len(tokens))),
        confidence=[1.0] * len(tokens),
        text="",
        correct=correct,
    )


def test_answers_are_filled_up_with_eos_that_count():
    made = collate([answer(0, [5, 6, 7], [8, 9]), answer(1, [5], [8, 9, 3])], eos=EOS, pad=2)
    assert made.tokens.tolist() == [[5, 6, 7, 8, 9, EOS], [2, 2, 5, 8, 9, 3]]
    assert made.response.tolist() == [[False] * 3 + [True] * 3] * 2
    assert made.attention_mask.tolist() == [[True] * 6, [False] * 2 + [True] * 4]
    with pytest.raises(InputError, match="trajectory 7 has an empty answer"):
        collate([answer(7, [5], [])], eos=EOS, pad=2)


def tiny_training(model, tokenizer, answers, monkeypatch, **changes):
    """A training on a model in memory with the given answers."""
    raw = {"method": "dparallel", "init": "x", "data": "y", "block_length": 4, "batch_size": 4}
    raw["fit"] = {"steps": 4, "learning_rate": 1e-3, "warmup": 0, "ema": 0}
    recipe = DParallelRecipe.model_validate(raw | changes)
    monkeypatch.setattr(
        "whet.dlm.dparallel.training.start_model", lambda source: (model, tokenizer)
    )
    made = DParallelTraining(recipe)
    made.answers = answers
    return made


class Words:
    """As much of a tokenizer as a denoiser asks for."""

    def __len__(self):
        return VOCAB

    def get_vocab(self):
        return {str(i): i for i in range(VOCAB)}


def random_answers(count=10, seed=0):
    drawn = np.random.default_rng(seed)
    return [
        answer(
            i,
            drawn.integers(1, MASK, int(drawn.integers(2, 6))).tolist(),
            drawn.integers(1, MASK, 9).tolist(),
        )
        for i in range(count)
    ]


def reference(model, batch, recipe, shift):
    """The batch's loss row by row, unpadded, one canvas and one pass at a time."""
    total = 0.0
    for row in range(len(batch.answers.tokens)):
        real = batch.answers.attention_mask[row]
        labels = batch.answers.tokens[row][real]
        for chosen in (batch.masks.first[row][real], batch.masks.second[row][real]):
            hidden = chosen | batch.masks.future[row][real]
            fed = torch.where(hidden, torch.tensor(MASK), labels)
            with torch.no_grad():
                logits = model(input_ids=fed[None]).logits[0]
            if shift:  # drop the last logit, the first label and the first mask
                logits, labels_, chosen_ = logits[:-1], labels[1:], chosen[1:]
            else:
                labels_, chosen_ = labels, chosen
            logits = logits[chosen_].clone()
            logits[:, MASK] = -torch.inf
            if len(logits):
                zero = torch.zeros(len(logits), dtype=torch.long)
                total += float(
                    certainty_forcing(
                        logits, labels_[chosen_], zero, 1,
                        beta=recipe.beta, temperature=recipe.temperature,
                    )[0]
                )  # fmt: skip
    return total / len(batch.answers.tokens)


@pytest.mark.parametrize("block_length", [4, None])
@pytest.mark.parametrize(("family", "shift"), [("tiny_llada", False), ("tiny_dream", True)])
def test_a_batch_is_the_mean_of_its_rows_alone(family, shift, block_length, request, monkeypatch):
    model = request.getfixturevalue(family)
    made = tiny_training(model, Words(), random_answers(), monkeypatch, block_length=block_length)
    for step in range(3):
        batch = made.batch(step)
        loss, metrics = made.loss(batch, "model")
        assert float(loss) == pytest.approx(reference(model, batch, made.recipe, shift), abs=1e-10)
        assert 0 <= metrics["right"] <= 1
        parts = made.split(batch, "model", 3)
        assert sum(share for _, share in parts) == pytest.approx(1)
        summed = sum(share * float(made.loss(part, "model")[0]) for part, share in parts)
        assert summed == pytest.approx(float(loss), abs=1e-10)


def test_the_sets_may_be_swapped(tiny_llada, monkeypatch):
    from dataclasses import replace

    made = tiny_training(tiny_llada, Words(), random_answers(), monkeypatch)
    batch = made.batch(0)
    masks = replace(batch.masks, first=batch.masks.second, second=batch.masks.first)
    swapped = replace(batch, masks=masks)
    one, two = (float(made.loss(b, "model")[0]) for b in (batch, swapped))
    assert one == pytest.approx(two, abs=1e-12)


def test_batches_come_from_their_step_and_an_epoch_has_every_answer_once(tiny_llada, monkeypatch):
    answers = random_answers(10)
    made = tiny_training(tiny_llada, Words(), answers, monkeypatch, batch_size=4)
    prompts = [tuple(a.prompt_ids + a.tokens) for a in answers]

    def seen(steps):
        found = []
        for step in steps:
            batch = made.batch(step).answers
            for tokens, real in zip(batch.tokens, batch.attention_mask, strict=True):
                found.append(prompts.index(tuple(tokens[real].tolist())))
        return found

    order = seen(range(5))
    assert sorted(order[:10]) == list(range(10)) == sorted(order[10:20])
    assert order[:10] != order[10:20]
    assert seen([3]) == order[12:16], "a batch does not depend on those before"
    assert torch.equal(made.batch(2).masks.first, made.batch(2).masks.first)


# --- the decoder it is made for -----------------------------------------------------------------


def test_the_threshold_goes_from_one_token_per_forward_to_one_forward_per_block(tiny_llada):
    canvas = torch.cat((torch.tensor([[3, 5, 7]]), torch.full((1, 12), MASK)), 1)

    def steps(threshold):
        options = EntropyThreshold(entropy_threshold=threshold, block_length=4, softmax="float64")
        _, trace = denoise(tiny_llada, canvas, options=options)
        return int(trace.steps[0])

    assert steps(0.0) == 12
    assert steps(math.log(VOCAB)) == 3


def test_equal_best_probabilities_may_have_different_entropies():
    spread = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    packed = torch.tensor([0.6, 0.4, 1e-12, 1e-12, 1e-12])
    one, two = (float(-(p * p.log()).sum()) for p in (spread, packed))
    assert one > 1.2 > 0.7 > two


# --- whole runs ---------------------------------------------------------------------------------


def recipe_of(**changes):
    raw = {
        "method": "dparallel",
        "init": "tiny-dlm",
        "data": {"tasks": ["sort", "permutation"], "count": 12, "gen_length": 16, "batch_size": 6},
        "batch_size": 4,
        "block_length": None,
        "fit": {
            "steps": 3,
            "learning_rate": 1e-3,
            "warmup": 1,
            "ema": 0.9,
            "checkpoint_every": 2,
        },
    }
    return raw | changes


def train(out, **changes):
    DParallelTraining(DParallelRecipe.model_validate(recipe_of(**changes))).run(out)
    return load(out / "model")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folder of a short run and the student it exported."""
    out = tmp_path_factory.mktemp("run")
    return out, *train(out)


def test_a_run_records_its_teachers_right_answers_and_exports_a_plain_student(run):
    out, student, tokenizer = run
    teacher, _ = load("tiny-dlm")
    assert type(student) is type(teacher)
    assert tokenizer.get_vocab() == teacher.tokenizer.get_vocab()
    moved = [
        not torch.equal(a, b)
        for a, b in zip(student.state_dict().values(), teacher.state_dict().values(), strict=True)
    ]
    assert any(moved)
    recorded = Trajectories(out / "trajectories" / "one-token")
    assert len(recorded) == 12
    assert {t.source for t in recorded} == {"sort", "permutation"}
    assert all(t.steps == 16 for t in recorded), "one token per step"
    assert all(t.correct for t in read_answers(out / "trajectories"))


def test_a_folder_of_trajectories_trains_the_same_student(run, tmp_path):
    out, student, _ = run
    again, _ = train(tmp_path, data=str(out / "trajectories"))
    for name, tensor in student.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert not (tmp_path / "trajectories").exists()


def test_lora_is_merged_into_the_exported_student(run, tmp_path):
    made = DParallelTraining(
        DParallelRecipe.model_validate(
            recipe_of(data=str(run[0] / "trajectories"), lora={"rank": 4, "alpha": 4})
        )
    )
    made.run(tmp_path)
    student, _ = load(tmp_path / "model")
    teacher, _ = load("tiny-dlm")
    assert type(student) is type(teacher)
    weights = teacher.state_dict()
    changed = {n for n, t in student.state_dict().items() if not torch.equal(t, weights[n])}
    assert changed
    assert all("blocks" in n and "norm" not in n for n in changed)
    ids = torch.tensor([[5, 6, 7, 1, 1]])
    average = made.players["model"].ema
    with torch.no_grad(), average.swapped_in(made.model):
        unmerged = unwrap(made.model).eval()(input_ids=ids).logits
        torch.testing.assert_close(student(input_ids=ids).logits, unmerged, atol=2e-2, rtol=0)


def test_it_can_be_stopped_and_goes_on_exactly(run, tmp_path, monkeypatch):
    made = DParallelTraining(
        DParallelRecipe.model_validate(recipe_of(data=str(run[0] / "trajectories")))
    )
    batch = made.batch

    def stop(step):
        if step == 2:
            raise KeyboardInterrupt
        return batch(step)

    monkeypatch.setattr(made, "batch", stop)
    with pytest.raises(KeyboardInterrupt):
        made.run(tmp_path)
    again, _ = train(tmp_path, data=str(run[0] / "trajectories"))
    for name, tensor in run[1].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


TWO_ROUNDS = {
    "rounds": 2,
    "data": {
        "tasks": ["sort"],
        "count": 8,
        "gen_length": 16,
        "batch_size": 8,
        "thresholds": [0.01, 0.3],
    },
}


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    """Folder of a run of two short rounds and its student."""
    out = tmp_path_factory.mktemp("rounds")
    return out, train(out, **TWO_ROUNDS)[0]


def test_the_student_of_a_round_answers_for_the_next(rounds):
    out, student = rounds
    first = read_answers(out / "round-000" / "data")
    assert [p.name for p in (out / "round-000" / "data").iterdir()] == ["one-token"]
    assert all(t.steps == 16 for t in first), "the teacher takes one token per step"
    loose = Trajectories(out / "round-001" / "data" / "threshold-0.3")
    assert len(loose) == 8
    assert all(t.steps < 16 for t in loose)
    assert {t.prompt for t in first}.isdisjoint({t.prompt for t in loose})
    promoted, _ = load(out / "round-000" / "promoted")
    options = EntropyThreshold(entropy_threshold=0.3)
    texts = generate_texts(
        promoted, promoted.tokenizer, [t.prompt for t in loose], options=options, gen_length=16
    )
    assert [c.text for c in texts] == [t.text for t in loose]
    last, _ = load(out / "round-001" / "promoted")
    for name, tensor in last.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name
    begun = [m.state_dict()["model.transformer.ff_out.weight"] for m in (promoted, last)]
    assert not torch.equal(*begun)


def test_what_the_student_answers_wrong_is_asked_at_the_next_threshold_and_then_the_teacher(
    tmp_path,
):
    teacher = Answerer(*load("tiny-dlm"), "tiny-dlm")
    student = Answerer(*load("tiny-dlm-dparallel"), "student")
    data = OwnAnswers(tasks=["queens", "sudoku"], count=16, gen_length=16, thresholds=[0.1, 3.0])
    record_answers(data, teacher, student, folder=tmp_path, round_=1)
    folders = ["threshold-3", "threshold-0.1", "one-token"]
    parts = [Trajectories(tmp_path / name) for name in folders]
    assert len(parts[0]) == 16
    for before, after in itertools.pairwise(parts):
        assert [t.prompt for t in after] == [t.prompt for t in before if not t.correct]
    last = list(parts[2])
    texts = generate_texts(
        teacher.model,
        teacher.tokenizer,
        [t.prompt for t in last],
        options=LowConfidence(),
        gen_length=16,
    )
    assert last
    assert [c.text for c in texts] == [t.text for t in last]
    kept = read_answers(tmp_path)
    assert len(kept) == sum(t.correct for part in parts for t in part)
    assert len({t.prompt for t in kept}) == len(kept)


def test_rounds_that_were_stopped_end_as_those_that_were_not(rounds, tmp_path, monkeypatch):
    from whet.dlm.dparallel import training

    record = training.record_answers

    def stop(*given, round_=0, **named):
        if round_:
            raise KeyboardInterrupt
        return record(*given, round_=round_, **named)

    monkeypatch.setattr(training, "record_answers", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, **TWO_ROUNDS)
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    again, _ = train(tmp_path, **TWO_ROUNDS)
    for name, tensor in rounds[1].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


# --- bad input ----------------------------------------------------------------------------------


def test_a_teacher_of_another_family_or_vocabulary_is_refused(tmp_path):
    for teacher, why in (
        ("tiny-dream", "is a 'Dream' and the student a 'llada': both must be of one family"),
        ("tiny-ar", "is a 'llama' and the student a 'llada'"),
    ):
        with pytest.raises(OptionError, match=f"teacher={teacher!r} {why}"):
            train(tmp_path, teacher=teacher)
    other, tokenizer = load("tiny-dlm")
    tokenizer.add_tokens(["new"])
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(OptionError, match="has another vocabulary than the student"):
        train(tmp_path, teacher=str(tmp_path / "other"))


def test_an_autoregressive_start_is_refused():
    with pytest.raises(CheckpointError, match="model_type 'llama' is no masked LM that whet knows"):
        DParallelTraining(DParallelRecipe.model_validate(recipe_of(init="tiny-ar")))


def test_block_causal_models_are_refused(tiny_sdar, monkeypatch):
    with pytest.raises(OptionError, match="init='x' is a 'sdar': dparallel trains masked LMs that"):
        tiny_training(tiny_sdar, Words(), [], monkeypatch)


def test_a_folder_of_another_tokenizer_is_refused(run, tmp_path, monkeypatch):
    made = DParallelTraining(
        DParallelRecipe.model_validate(recipe_of(data=str(run[0] / "trajectories")))
    )
    decode = made.tokenizer.decode
    monkeypatch.setattr(made.tokenizer, "decode", lambda *a, **k: decode(*a, **k) + "x")
    with pytest.raises(InputError, match=r"trajectory 0 was recorded with another vocabulary"):
        made.prepare(tmp_path)


def test_a_folder_that_holds_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match=str(tmp_path / "none")):
        train(tmp_path / "run", data=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"betta": 1.0}, "unknown key 'betta': did you mean 'beta'?"),
        ({"beta": -1}, "beta: "),
        ({"temperature": 0}, "temperature: "),
        ({"mask_ratio": 1.0}, "mask_ratio: "),
        ({"block_length": 0}, "block_length: "),
        ({"rounds": 0}, "rounds: "),
        ({"rounds": 2, "data": "d"}, "rounds=2 needs data to name tasks: every round asks new"),
        ({"lora": {"rank": 0}}, "lora.rank: "),
        ({"lora": {"rang": 4}}, "unknown key 'lora.rang': did you mean 'rank'?"),
        ({"data": {"tasks": ["sortt"], "count": 5, "gen_length": 4}}, "data"),
    ],
)
def test_a_wrong_recipe_is_explained(tmp_path, changes, why):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe_of(**changes)))
    with pytest.raises(InputError) as caught:
        DParallelRecipe.read(path, method="dparallel")
    message = str(caught.value)
    assert message.removeprefix(f"recipe {path}: ").startswith(why)
    assert "\n" not in message


def test_the_shipped_recipe_is_read():
    path = zoo.recipes()["tiny-dlm-dparallel"]
    recipe = DParallelRecipe.read(path, method="dparallel")
    assert recipe.init == "tiny-dlm"
    assert recipe.beta > 0
