import numpy as np
import pytest
import torch

from whet import rng
from whet.data.mixture import ProblemMixture
from whet.errors import InputError
from whet.tasks import get_task, split_of
from whet.zoo.tokenizer import character_tokenizer

TOKENIZER = character_tokenizer()
EOS, PAD = 0, 5


def source(low, high):
    def draw(generator):
        length = int(generator.integers(low, high + 1))
        digits = "".join(map(str, generator.integers(10, size=length)))
        return f"{digits}=", digits[: length // 2 + 1]

    return draw


def make(**changes):
    settings = {
        "weights": {"short": 1.0, "long": 3.0},
        "gen_lengths": {10: 1.0, 12: 1.0},
        "batch_size": 12,
        "groups": 1,
        "seed": 3,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    sources = {"short": source(2, 4), "long": source(8, 14)}
    return ProblemMixture(TOKENIZER, sources, **(settings | changes))


@pytest.mark.parametrize("groups", [1, 3, 5])
def test_rows_are_left_padded_prompts_and_filled_responses(groups):
    for step in range(6):
        parts = make(groups=groups).batch(step)
        assert sum(len(p.tokens) for p in parts) == 12
        gens = set()
        for part in parts:
            L = part.tokens.shape[1]
            G = int(part.lengths[0])
            gens.add(G)
            assert part.lengths.tolist() == [G] * len(part.tokens)
            expected = torch.zeros(L, dtype=torch.bool)
            expected[L - G :] = True
            assert all(torch.equal(row, expected) for row in part.response)
            assert bool(part.attention_mask[:, 0].any()), "the longest prompt has no padding"
            for tokens, mask in zip(part.tokens, part.attention_mask, strict=True):
                pad = int((~mask).sum())
                assert not mask[:pad].any()
                assert mask[pad:].all()
                assert (tokens[:pad] == PAD).all()
                prompt = TOKENIZER.decode(tokens[pad : L - G])
                assert prompt.endswith("=")
                response = tokens[L - G :].tolist()
                answer = prompt[: (len(prompt) - 1) // 2 + 1]
                assert TOKENIZER.decode(response[: len(answer)]) == answer
                assert response[len(answer) :] == [EOS] * (G - len(answer))
        assert len(gens) == 1


def test_groups_save_padding_and_lose_no_row():
    one, three = make().batch(0), make(groups=3).batch(0)

    def rows(parts):
        return sorted(
            tuple(t[m].tolist())
            for p in parts
            for t, m in zip(p.tokens, p.attention_mask, strict=True)
        )

    assert rows(one) == rows(three)
    assert sum(p.tokens.numel() for p in three) < sum(p.tokens.numel() for p in one)


def test_a_batch_depends_on_the_seed_and_the_step_alone():
    forwards = [make().batch(step)[0].tokens for step in range(4)]
    mixture = make()
    backwards = [mixture.batch(step)[0].tokens for step in (3, 2, 1, 0)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not torch.equal(forwards[0], forwards[1])
    other = make(seed=4).batch(0)[0].tokens
    assert other.shape != forwards[0].shape or not torch.equal(other, forwards[0])


def test_shares_are_kept():
    mixture = make(batch_size=40, gen_lengths={10: 1.0, 12: 4.0})
    batches = [mixture.batch(step)[0] for step in range(100)]
    prompts = torch.cat([b.attention_mask.sum(-1) - b.lengths for b in batches])
    assert float((prompts <= 5).double().mean()) == pytest.approx(0.25, abs=0.04)
    lengths = np.array([int(b.lengths[0]) for b in batches])
    assert (lengths == 12).mean() == pytest.approx(0.8, abs=0.12)


def test_a_response_longer_than_the_canvas_is_an_error():
    with pytest.raises(InputError, match=r"response of \d+ tokens does not fit gen_length=2"):
        make(gen_lengths={2: 1.0}).batch(0)


def test_training_never_draws_validation_or_test_prompts():
    from whet.zoo.training import draw_pair

    task = get_task("queens")
    drawn = {draw_pair(task, rng.keyed(0, "d", i))[0] for i in range(1500)}
    assert {split_of(prompt) for prompt in drawn} == {"train"}
    everything = {task.generate(rng.keyed(0, "d", i)).prompt for i in range(1500)}
    assert {split_of(prompt) for prompt in everything} == {"train", "validation", "test"}
