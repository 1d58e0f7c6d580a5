"""What a trace says a decoding cost, and where texts end: cases worked out by hand."""

import dataclasses

import pytest
import torch

from tests.conftest import EOS, VOCAB
from whet.dlm.low_confidence import LowConfidence
from whet.dlm.soar import Soar
from whet.dlm.texts import completions, generate_texts
from whet.dlm.threshold import Threshold
from whet.dlm.trace import Trace
from whet.errors import OptionError
from whet.models.denoiser import Denoiser


class Letters:
    """A tokenizer of one character per id, EOS included."""

    chat_template = None
    unk_token_id = None

    def __len__(self):
        return VOCAB

    def get_vocab(self):
        return {chr(ord("A") + i): i for i in range(VOCAB)}

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(c) - ord("A") for c in text]}

    def decode(self, ids, skip_special_tokens=False):
        return "".join(chr(ord("A") + i) for i in ids)


@pytest.fixture
def trace():
    """Prompt 0 takes four steps, prompt 1 two; of prompt 1 the second position was given."""
    return Trace(
        forwards=4,
        rows=10,
        commit_step=torch.tensor([[0, 2, 1, 3], [1, -1, 0, 1]]),
        confidence=torch.tensor([[0.5, 0.25, 0.75, 1.0], [0.125, 0.0, 0.5, 0.25]]),
        rows_per_step=torch.tensor([[1, 1], [2, 3], [2, 0], [1, 0]]),
    )


def test_steps_and_rows_end_with_the_prompt(trace):
    assert trace.steps.tolist() == [4, 2]
    assert trace.prompt_rows.tolist() == [6, 4]
    assert int(trace.prompt_rows.sum()) == trace.rows


@pytest.mark.parametrize(
    ("useful", "steps", "rows"),
    [
        ([[1, 1, 1, 1], [1, 1, 1, 1]], [4, 2], [6, 4]),
        ([[1, 1, 0, 0], [1, 1, 1, 1]], [2, 2], [3, 4]),
        ([[1, 0, 0, 0], [1, 1, 0, 0]], [1, 1], [1, 3]),
        ([[1, 1, 1, 0], [1, 0, 0, 1]], [3, 1], [5, 3]),
        # Only the given position: no step was needed for it.
        ([[0, 0, 0, 0], [0, 1, 0, 0]], [0, 0], [0, 0]),
    ],
)
def test_spent_on_leaves_out_steps_without_useful_tokens(trace, useful, steps, rows):
    found = trace.spent_on(torch.tensor(useful).bool())
    assert [t.tolist() for t in found] == [steps, rows]


def test_spent_on_counts_steps_that_committed_nothing(trace):
    # Step 1 of prompt 0 went to a hypothesis that lost; it is cost, not filling.
    trace.commit_step[0] = torch.tensor([0, 2, 2, 3])
    useful = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
    assert [t.tolist() for t in trace.spent_on(useful)] == [[3, 2], [5, 4]]


def test_as_json_lists_every_step_of_one_prompt(trace):
    assert trace.as_json(1, [7, 8, 9, 10], list("HIJK")) == {
        "steps": [
            {
                "step": 0,
                "rows": 1,
                "positions": [2],
                "tokens": [9],
                "texts": ["J"],
                "confidences": [0.5],
            },
            {
                "step": 1,
                "rows": 3,
                "positions": [0, 3],
                "tokens": [7, 10],
                "texts": ["H", "K"],
                "confidences": [0.125, 0.25],
            },
        ],
        "forwards": 2,
        "rows": 4,
    }
    first = trace.as_json(0, [1, 2, 3, 4], list("BCDE"))
    assert [s["positions"] for s in first["steps"]] == [[0], [2], [1], [3]]
    assert (first["forwards"], first["rows"]) == (4, 6)


def test_completions_cut_at_the_first_eos(tiny_llada, trace):
    region = torch.tensor([[5, EOS, EOS, 7], [1, 2, 3, 4]])
    first, second = completions(["p", "q"], region, trace, Letters(), Denoiser.of(tiny_llada))
    assert (first.prompt, first.text, first.tokens) == ("p", "F", [5, EOS, EOS, 7])
    # The EOS itself was committed in step 2; steps 1 and 3 only filled behind it.
    assert (first.steps, first.rows, first.answer_tokens) == (4, 6, 2)
    assert (first.answer_steps, first.answer_rows) == (2, 3)
    assert (second.prompt, second.text, second.answer_tokens) == ("q", "BCDE", 4)
    assert (second.answer_steps, second.answer_rows) == (second.steps, second.rows) == (2, 4)
    assert (first.index, second.index) == (0, 1)
    assert first.trace is second.trace is trace


def test_completions_of_an_empty_and_of_a_full_answer(tiny_llada, trace):
    region = torch.tensor([[EOS, 5, 6, 7], [1, 2, 3, EOS]])
    empty, full = completions(["p", "q"], region, trace, Letters(), Denoiser.of(tiny_llada))
    assert (empty.text, empty.answer_tokens) == ("", 1)
    assert (empty.answer_steps, empty.answer_rows) == (1, 1)
    assert (full.text, full.answer_tokens, full.answer_steps) == ("BCD", 4, 2)


@pytest.mark.parametrize(
    "options",
    [LowConfidence(), LowConfidence(steps=4), Threshold(threshold=0.2), Soar(threshold=0.2)],
    ids=["greedy", "three at once", "threshold", "soar"],
)
def test_generated_texts_end_at_eos(tiny_llada, options):
    tokenizer, gen_length = Letters(), 12
    prompts = ["BCD", "KLMNO", "Z", "BCDEF", "QRS"]
    denoiser = Denoiser.of(tiny_llada, tokenizer)
    plain = list(
        generate_texts(denoiser, tokenizer, prompts, options=options, gen_length=gen_length)
    )
    # A random model says EOS by chance only: name a token that it did say in mid-text.
    eos = plain[0].tokens[5]
    ending = dataclasses.replace(denoiser, eos_token_ids=(eos,))
    done = list(
        generate_texts(
            ending, tokenizer, prompts, options=options, gen_length=gen_length, batch_size=2
        )
    )
    assert [d.prompt for d in done] == prompts
    assert [d.tokens for d in done] == [p.tokens for p in plain]
    for d in done:
        cut = d.tokens.index(eos) if eos in d.tokens else gen_length
        assert d.text == tokenizer.decode(d.tokens[:cut])
        assert d.answer_tokens == min(cut + 1, gen_length)
        assert 1 <= d.answer_steps <= d.steps <= gen_length
        assert d.answer_steps <= d.answer_rows <= d.rows
        order = d.trace.commit_step[d.index].tolist()
        used = len(set(order[: d.answer_tokens]))
        # A winner may have waited, complete, for the rest of its beam.
        assert d.answer_steps >= used if isinstance(options, Soar) else d.answer_steps == used
    assert done[0].answer_tokens <= 6
    if options == LowConfidence():
        assert done[0].answer_steps == done[0].answer_tokens
        assert done[0].steps == gen_length


@pytest.mark.parametrize("wrong", [{"gen_length": 0}, {"gen_length": 4, "batch_size": 0}])
def test_sizes_below_one_are_refused(tiny_llada, wrong):
    with pytest.raises(OptionError, match="must be at least 1"):
        list(generate_texts(tiny_llada, Letters(), ["BC"], options=LowConfidence(), **wrong))


@pytest.mark.parametrize(
    "options",
    [LowConfidence(), Soar(threshold=0.2), LowConfidence(cfg_scale=1.0)],
    ids=["greedy", "soar", "guided"],
)
def test_rows_of_the_prompts_add_up_to_those_of_the_batch(tiny_llada, options):
    done = list(
        generate_texts(tiny_llada, Letters(), ["BCD", "KLM"], options=options, gen_length=8)
    )
    assert max(d.steps for d in done) == done[0].trace.forwards
    assert sum(d.rows for d in done) == done[0].trace.rows
