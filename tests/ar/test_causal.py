"""Next-token training: what is learnt from, against a plain loop; data of its recipes."""

import json

import numpy as np
import pytest
import torch

from whet import rng
from whet.ar.causal import CausalTraining, learnt_positions
from whet.data.mixture import ProblemMixture, ResponseBatch
from whet.errors import OptionError
from whet.models.registry import is_autoregressive
from whet.tasks import get_task, problems, split_of
from whet.tasks.answers import THINK, answer_part
from whet.zoo.tokenizer import character_tokenizer
from whet.zoo.training import TaskRecipe, draw_pair, think

RECIPE = {
    "method": "causal",
    "model": {
        "model_type": "llama",
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 48,
        "vocab_size": 112,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    },
    "data": {
        "tasks": {"sort:length=4": 1.0, "permutation:size=6": 2.0},
        "gen_lengths": None,
        "batch_size": 12,
        "groups": 3,
    },
    "fit": {"steps": 6, "learning_rate": 0.01, "warmup": 2, "ema": 0.9, "checkpoint_every": 3},
}


def raw(**changes):
    made = json.loads(json.dumps(RECIPE))
    for name, value in changes.items():
        section, _, key = name.partition("__")
        made[section][key] = value
    return made


def training(sources=None, **changes):
    return CausalTraining(TaskRecipe.model_validate(raw(**changes)), sources=sources)


# --- what is learnt -----------------------------------------------------------------------------


def test_positions_end_with_the_first_end_of_text():
    e = 0
    part = ResponseBatch(
        torch.tensor(
            [[e, 7, 5, 6, e, e], [8, 7, 5, 6, 4, e], [8, 7, e, e, e, e], [8, e, 5, 6, 4, 9]]
        ),
        torch.tensor([[False] + [True] * 5] + [[True] * 6] * 3),
        torch.tensor([[False] * 2 + [True] * 4] * 4),
    )
    assert learnt_positions(part, e).int().tolist() == [
        [0, 0, 1, 1, 1, 0],
        [0, 0, 1, 1, 1, 1],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1],  # an end in the prompt does not count
    ]


@pytest.mark.parametrize("gen_lengths", [None, {12: 1.0}])
def test_the_loss_is_that_of_a_plain_loop_over_unpadded_rows(gen_lengths):
    """Whatever the padding and the groups: nats per response token, its end of text included."""
    made = training(data__gen_lengths=gen_lengths)
    batch = made.batch(0)
    assert len(batch) == 3
    eos = made.tokenizer.eos_token_id
    nats, right, tokens = [], 0, 0
    for part in batch:
        for ids, mask, response in zip(
            part.tokens, part.attention_mask, part.response, strict=True
        ):
            prompt = ids[mask & ~response].tolist()
            answer = [t for t in ids[response].tolist() if t != eos] + [eos]
            logits = made.model(torch.tensor([prompt + answer])).logits[0]
            tokens += len(prompt) + len(answer)
            for place, token in enumerate(answer, start=len(prompt)):
                nats.append(-float(logits[place - 1].log_softmax(-1)[token].detach()))
                right += int(logits[place - 1].argmax()) == token
    loss, values = made.loss(batch, "model")
    assert loss.item() == pytest.approx(np.mean(nats), rel=1e-5)
    assert values["token_accuracy"] == pytest.approx(right / len(nats))
    assert made.tokens(batch) == tokens


def test_padding_and_tokens_after_the_end_change_nothing():
    made = training()
    (part, *_) = made.batch(0)

    def wider(values, left, right):
        rows = len(values)
        return torch.cat([torch.full((rows, 3), left), values, torch.full((rows, 4), right)], 1)

    wide = ResponseBatch(
        wider(part.tokens, 9, 7), wider(part.attention_mask, False, True),
        wider(part.response, False, True),
    )  # fmt: skip
    loss, again = (made.loss([p], "model")[0].item() for p in (part, wide))
    assert again == pytest.approx(loss, rel=1e-5)
    assert made.tokens([wide]) == made.tokens([part])


def test_only_the_response_is_learnt():
    made = training()
    batch = made.batch(0)
    made.loss(batch, "model")[0].backward()
    first = {n: p.grad.clone() for n, p in made.model.named_parameters()}
    again = training()
    total = sum(int(learnt_positions(p, 0).sum()) for p in batch)
    for part in batch:  # the same through labels of transformers' own loss
        labels = part.tokens.masked_fill(~learnt_positions(part, 0), -100)
        positions = (part.attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        loss = again.model(
            input_ids=part.tokens,
            attention_mask=part.attention_mask.long(),
            position_ids=positions,
            labels=labels,
        ).loss
        (loss * int(learnt_positions(part, 0).sum()) / total).backward()
    for name, p in again.model.named_parameters():
        assert torch.allclose(p.grad, first[name], atol=1e-5), name


# --- training to a model that answers -----------------------------------------------------------


def test_training_lowers_the_loss_and_exports_a_model_that_loads(tmp_path):
    import whet

    made = training(fit__steps=40)
    first = made.loss(made.batch(999), "model")[0].item()
    made.run(tmp_path)
    assert made.loss(made.batch(999), "model")[0].item() < 0.8 * first
    model, tokenizer = whet.load(str(tmp_path / "model"))
    assert is_autoregressive(model)
    assert len(tokenizer) == len(made.tokenizer)
    average = made.players["model"].ema.average
    assert all(
        torch.equal(t, average[n].half().float())
        for n, t in model.state_dict().items()
        if n in average
    )


def test_a_resumed_run_is_bit_equal(tmp_path):
    made = training()
    made.run(tmp_path / "whole")
    stopped = training()

    def stop(step, batch=stopped.batch):
        if step == 4:
            raise KeyboardInterrupt
        return batch(step)

    stopped.batch = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.run(tmp_path / "parts")
    again = training()
    again.run(tmp_path / "parts")
    for name, t in made.model.state_dict().items():
        assert torch.equal(t, again.model.state_dict()[name]), name


def test_a_recipe_of_another_method_is_refused():
    recipe = TaskRecipe.model_validate(raw() | {"method": "masked"})
    with pytest.raises(OptionError, match="for method 'masked', not 'causal'"):
        CausalTraining(recipe)


# --- batches ------------------------------------------------------------------------------------


def mixture(**changes):
    tokenizer = character_tokenizer()

    def draw(generator):
        text = "7" * int(generator.integers(1, 9))
        return f"{text}=", text * int(generator.integers(1, 3))

    settings = {"weights": {"a": 1.0}, "gen_lengths": None, "batch_size": 24, "groups": 4}
    settings |= {"seed": 0, "eos_token_id": 0, "pad_token_id": 0} | changes
    return ProblemMixture(tokenizer, {"a": draw}, **settings)


def test_without_canvas_lengths_a_group_is_as_long_as_its_longest_response_and_an_end():
    for step in range(5):
        parts = mixture().batch(step)
        assert [len(p.tokens) for p in parts] == [6] * 4
        for part in parts:
            said = [
                int((ids[r] != 0).sum()) for ids, r in zip(part.tokens, part.response, strict=True)
            ]
            assert set(part.lengths.tolist()) == {max(said) + 1}
            assert (part.tokens[:, -1] == 0).all()
            ends = [int(n) for n in learnt_positions(part, 0).sum(-1)]
            assert ends == [n + 1 for n in said]


def test_rows_of_like_length_lie_together():
    def wasted(groups):
        parts = mixture(groups=groups).batch(0)
        return sum(
            int((~p.attention_mask).sum()) + int((p.response & (p.tokens == 0)).sum())
            for p in parts
        )

    assert wasted(8) < 0.5 * wasted(1)
    rows = [
        sorted(str(r[r != 0].tolist()) for p in mixture(groups=g).batch(0) for r in p.tokens)
        for g in (1, 8)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("wrong", [{}, {0: 1.0}, {8: 0.0}])
def test_impossible_canvas_lengths_are_refused(wrong):
    with pytest.raises(ValueError, match=r"gen_lengths"):
        TaskRecipe.model_validate(raw(data__gen_lengths=wrong))


# --- pairs, words and working -------------------------------------------------------------------


def test_pairs_are_of_the_training_split_and_right():
    for name in ("sort:length=4", "find_maximum:size=4", "sum:size=8", "complex_pattern:mode=wide"):
        task = get_task(name)
        tests = {i.prompt for i in problems(task, seed=0, split="test", count=200)}
        for index in range(60):
            prompt, response = draw_pair(task, rng.keyed(0, "pair", index))
            assert prompt not in tests
            assert task.parse(response, "strict") is not None
            if name.startswith("sort"):
                assert split_of(prompt) == "train"
        assert draw_pair(task, rng.keyed(0, "pair", 5)) == draw_pair(task, rng.keyed(0, "pair", 5))


def test_working_replayed_gives_the_answer_and_varies_in_length():
    task = get_task("sudoku")
    lengths = set()
    for index in range(200):
        instance = task.generate(rng.keyed(0, "i", index))
        text = think(rng.keyed(0, "t", index), instance)
        assert text.startswith(THINK[0])
        working, _, answer = text.removeprefix(THINK[0]).partition(THINK[1])
        board = []
        for c in working:
            board.pop() if c == "<" else board.append(c)
        assert "".join(board) == answer == instance.example
        assert answer_part(text) == answer
        assert task.correct(instance, answer_part(text))
        lengths.add(len(working))
    assert min(lengths) == 16  # no slip
    assert max(lengths) > 24
    assert len(lengths) > 8


def test_an_answer_of_one_letter_cannot_slip():
    from dataclasses import replace

    instance = replace(get_task("sort").generate(rng.keyed(0, "i")), example="7")
    assert all(think(rng.keyed(0, i), instance) == f"{THINK[0]}7{THINK[1]}7" for i in range(30))


def test_the_share_of_worked_problems_is_the_one_asked_for_and_only_of_the_scratchpad():
    task, other = get_task("sort"), get_task("find_maximum:size=4")

    def share(task, thinking):
        pairs = [draw_pair(task, rng.keyed(0, i), thinking=thinking) for i in range(300)]
        return sum(r.startswith(THINK[0]) for _, r in pairs) / 300

    assert share(task, 0.0) == 0
    assert share(task, 1.0) == 1
    assert 0.4 < share(task, 0.5) < 0.6
    assert share(other, 1.0) == 0


def test_words_are_one_token_each_and_thinking_adds_its_marks():
    made = training(
        data__words=["Find the largest", ", "], data__thinking=0.5, model__vocab_size=128
    )
    for word in ("Find the largest", ", ", *THINK, "sort", "permutation"):
        assert len(made.tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word
    text = "Find the largest, sort 1"
    ids = made.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert made.tokenizer.decode(ids) == text
    plain = training()
    assert len(plain.tokenizer(THINK[0], add_special_tokens=False)["input_ids"]) > 1


@pytest.mark.parametrize("thinking", [-0.1, 1.1, float("nan")])
def test_a_share_outside_zero_to_one_is_refused(thinking):
    with pytest.raises(ValueError, match="thinking"):
        TaskRecipe.model_validate(raw(data__thinking=thinking))


def test_own_sources_take_the_place_of_the_tasks():
    made = training({name: lambda _: ("1=", "2") for name in RECIPE["data"]["tasks"]})
    rows = {tuple(r.tolist()) for part in made.batch(0) for r in part.tokens}
    (row,) = rows
    assert made.tokenizer.decode(row, skip_special_tokens=True) == "1=2"
    assert torch.equal(
        made.model.state_dict()["lm_head.weight"], training().model.state_dict()["lm_head.weight"]
    )
