"""Decoding on tagged slots: what is given stays, and answers are read from the summary alone."""

import math

import pytest
import torch

from whet.dlm.low_confidence import LowConfidence
from whet.dlm.nap import Nap
from whet.dlm.nap.layout import Layout, tag_ids
from whet.dlm.nap.texts import think_texts, used
from whet.dlm.nap.training import path_tokenizer
from whet.errors import CheckpointError, InputError, OptionError
from whet.models.llada import LLaDAConfig, LLaDAModelLM
from whet.zoo.tokenizer import character_tokenizer

LAYOUT = Layout(3, 5, 2)
PROMPTS = ["modsum a1b2%10=", "modsum a11b2c3%10=", "modsum a7%10="]


@pytest.fixture(scope="module")
def loaded():
    """A random model whose tokenizer has the tags."""
    tokenizer = path_tokenizer(["modsum"], 3)
    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        mlp_hidden_size=48,
        vocab_size=len(tokenizer),
        max_sequence_length=64,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        init_std=0.3,
    )
    return LLaDAModelLM(config).double().eval(), tokenizer


def decode(loaded, options, **settings):
    return list(
        think_texts(
            *loaded, PROMPTS, layout=LAYOUT, options=options, **{"batch_size": 2, **settings}
        )
    )


def test_texts_lie_where_their_tags_say(loaded):
    _, tokenizer = loaded
    for one, prompt in zip(decode(loaded, Nap()), PROMPTS, strict=True):
        assert one.prompt == prompt
        assert len(one.paths) == 3
        for text in (*one.paths, one.text):
            assert "<|mask|>" not in text
            assert "<|endoftext|>" not in text
        lengths = [
            len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in (*one.paths, one.text)
        ]
        assert all(n <= m for n, m in zip(lengths, LAYOUT.lengths, strict=True))
        # An end of text counts where there is one.
        ended = sum(n < m for n, m in zip(lengths, LAYOUT.lengths, strict=True))
        assert one.answer_tokens == sum(lengths) + ended


@pytest.mark.parametrize("per_step", [1, 2, 4])
def test_forwards_follow_from_the_quota(loaded, per_step):
    quota = math.ceil(17 / math.ceil(17 / per_step))
    for one in decode(loaded, Nap(steps=math.ceil(17 / per_step))):
        assert one.steps == math.ceil(15 / quota) + math.ceil(2 / quota)
        assert one.answer_steps <= one.steps
        assert 0 < one.arness <= 1
    for one in decode(loaded, LowConfidence(steps=math.ceil(17 / per_step))):
        assert one.steps == math.ceil(17 / per_step)


def test_a_batch_equals_its_parts(loaded):
    assert decode(loaded, Nap(steps=6)) == decode(loaded, Nap(steps=6), batch_size=1)


def test_what_is_used_ends_with_the_first_end_of_each_slot():
    tokens = torch.tensor([[100, 5, 0, 6, 101, 102, 7, 7, 7, 103, 104, 0, 105]])
    found = used(tokens, Layout(2, 3, 1), (0,))
    assert found[0].tolist() == [
        *(False, True, True, False, False),
        *(False, True, True, True, False),
        *(False, True, False),
    ]


def test_refusals(loaded):
    model, tokenizer = loaded
    with pytest.raises(CheckpointError, match=r"no token '<think 4>'"):
        list(think_texts(model, tokenizer, PROMPTS, layout=Layout(4, 5, 2), options=Nap()))
    with pytest.raises(CheckpointError, match=r"no token '<think 1>'"):
        list(think_texts(model, character_tokenizer(), PROMPTS, layout=LAYOUT, options=Nap()))
    with pytest.raises(OptionError, match="path_length is not given"):
        list(think_texts(model, tokenizer, PROMPTS, layout=Layout(3, None, None), options=Nap()))
    with pytest.raises(OptionError, match="batch_size=0"):
        decode(loaded, Nap(), batch_size=0)
    with pytest.raises(InputError, match="exceed the model's context of 64"):
        list(think_texts(model, tokenizer, PROMPTS, layout=Layout(3, 20, 2), options=Nap()))
    assert len(tag_ids(tokenizer, 3)) == 8
