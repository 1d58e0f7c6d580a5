import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from whet.errors import CheckpointError, InputError
from whet.models.denoiser import Denoiser, base_model, unwrap


class Tokens:
    """A tokenizer of `size` ids, of which one may end a turn."""

    def __init__(self, size, **special):
        self.size, self.special = size, special

    def __len__(self):
        return self.size

    def get_vocab(self):
        return {str(i): i for i in range(self.size)} | self.special


class Rolled(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, **inputs):
        states = self.inner.model(**inputs).last_hidden_state
        return SimpleNamespace(last_hidden_state=states.roll(-1, 1))


class Shifted(nn.Module):
    """A model whose logits at i are those of the wrapped model at i + 1."""

    def __init__(self, model):
        super().__init__()
        self.base_model = Rolled(model)
        self.config = SimpleNamespace(**model.config.to_dict() | {"model_type": "Dream"})
        self.config.max_position_embeddings = model.config.max_position_embeddings

    def head(self, hidden):
        return self.base_model.inner.head(hidden)


class Adapter(nn.Module):
    """A wrapper that passes attributes on and calls its content `base_model`, as PEFT's do."""

    def __init__(self, model, name):
        super().__init__()
        self.content = name
        self.add_module(name, model)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__(self.content), name)


def somewhere(tokens):
    """All positions but the first of every row, in a scrambled order."""
    rows, positions = torch.ones_like(tokens, dtype=torch.bool).nonzero(as_tuple=True)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(3))
    order = order[positions[order] > 0]
    return rows[order], positions[order]


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_a_shifted_model_gives_identical_logits(tiny_llada, padded):
    tokens = torch.randint(1, 39, (3, 9))
    mask = torch.ones(3, 9, dtype=torch.bool)
    mask[1, :4] = False
    mask = mask if padded else None
    rows, positions = somewhere(tokens)
    plain = Denoiser.of(tiny_llada)
    shifted = Denoiser.of(Shifted(tiny_llada))
    assert shifted.traits.shift
    assert not plain.traits.shift
    one = plain.logits(tokens, mask, rows, positions)
    assert torch.equal(shifted.logits(tokens, mask, rows, positions), one)
    unshifted = dataclasses.replace(shifted, model=tiny_llada).logits(tokens, mask, rows, positions)
    assert not torch.allclose(unshifted, one)


@torch.no_grad()
@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_logits_are_the_models_own_shifted_by_the_families_rule(family, request):
    model = request.getfixturevalue(family)
    denoiser = Denoiser.of(model)
    tokens = torch.randint(1, 39, (2, 7))
    rows, positions = somewhere(tokens)
    back = 1 if family == "tiny_dream" else 0
    expected = model(tokens).logits[rows, positions - back]
    found = denoiser.logits(tokens, None, rows, positions)
    assert torch.equal(found[:, 39], torch.full_like(found[:, 39], -torch.inf))
    torch.testing.assert_close(found[:, :39], expected[:, :39], atol=1e-12, rtol=0)
    if back:
        first = denoiser.head(denoiser.hidden(tokens), torch.tensor([1]), torch.tensor([0]))
        torch.testing.assert_close(first, model(tokens).logits[1:, 0], atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_a_left_padded_batch_equals_each_row_alone(family, request):
    denoiser = Denoiser.of(request.getfixturevalue(family))
    one, two = torch.randint(1, 39, (5,)), torch.randint(1, 39, (8,))
    batch = torch.zeros(2, 8, dtype=torch.long)
    batch[0, 3:], batch[1] = one, two
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, :3] = False
    hidden = denoiser.hidden(batch, mask)
    assert hidden.isfinite().all()
    torch.testing.assert_close(hidden[0, 3:], denoiser.hidden(one[None])[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(hidden[1], denoiser.hidden(two[None])[0], atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_mask_token_and_ids_beyond_the_tokenizer_are_never_predicted(tiny_llada):
    tokens = torch.randint(1, 30, (1, 4))
    at = torch.tensor([0]), torch.tensor([2])
    bare = Denoiser.of(tiny_llada).logits(tokens, None, *at)
    assert bare.isneginf().nonzero()[:, 1].tolist() == [39]
    cut = Denoiser.of(tiny_llada, Tokens(33)).logits(tokens, None, *at)
    assert cut.isneginf().nonzero()[:, 1].tolist() == list(range(33, 40))
    assert torch.equal(cut[:, :33], bare[:, :33])
    # A tokenizer that knows more than the head has rows cuts nothing.
    assert Denoiser.of(tiny_llada, Tokens(99)).vocab_size == 40


@torch.no_grad()
@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_only_the_asked_positions_pass_the_head(family, request):
    model = request.getfixturevalue(family)
    seen = []
    head = model.lm_head if family == "tiny_dream" else model.model.transformer["ff_out"]
    head.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0].shape[:-1].numel()))
    denoiser = Denoiser.of(model)
    tokens = torch.randint(1, 39, (3, 10))
    logits = denoiser.logits(tokens, None, torch.tensor([0, 2, 2, 0]), torch.tensor([1, 5, 9, 9]))
    assert logits.shape == (4, 40)
    assert seen == [4]


def test_the_facts_of_a_family(tiny_llada, tiny_dream):
    llada, dream = Denoiser.of(tiny_llada, Tokens(36)), Denoiser.of(tiny_dream)
    assert (llada.mask_token_id, llada.eos_token_ids, llada.pad_token_id) == (39, (0,), 0)
    assert (llada.vocab_size, dream.vocab_size) == (36, 40)
    assert llada.context_length == dream.context_length == 64
    tiny_dream.config.max_position_embeddings = 131072
    assert Denoiser.of(tiny_dream).context_length == 2048
    assert llada.device == torch.device("cpu")
    assert Denoiser.of(llada) is llada


def test_the_end_of_a_turn_comes_from_the_tokenizer(tiny_llada):
    assert Denoiser.of(tiny_llada, Tokens(36)).end_ids == (0,)
    spoken = Denoiser.of(tiny_llada, Tokens(36, **{"<|eot_id|>": 35}))
    assert (spoken.eos_token_ids, spoken.end_ids) == ((0,), (0, 35))
    tiny_llada.tokenizer = Tokens(30, **{"<|eot_id|>": 29})  # as `whet.load` leaves it
    assert Denoiser.of(tiny_llada).vocab_size == 30
    assert Denoiser.of(tiny_llada).end_ids == (0, 29)


def test_end_of_text_may_be_a_list_or_absent(tiny_llada):
    tiny_llada.config.eos_token_id, tiny_llada.config.pad_token_id = [3, 4], None
    several = Denoiser.of(tiny_llada)
    assert (several.eos_token_ids, several.pad_token_id) == ((3, 4), 3)
    tiny_llada.config.eos_token_id = None
    none = Denoiser.of(tiny_llada)
    assert (none.eos_token_ids, none.pad_token_id) == ((), 39)


def test_models_that_are_no_masked_lms_are_refused(tiny_llada):
    with pytest.raises(CheckpointError, match=r"'gpt2' is no masked LM .* llada, Dream"):
        Denoiser.of(SimpleNamespace(config=SimpleNamespace(model_type="gpt2")))
    tiny_llada.config.mask_token_id = None
    with pytest.raises(CheckpointError, match="no mask_token_id"):
        Denoiser.of(tiny_llada)


@pytest.mark.parametrize(
    ("ids", "why"),
    [
        ([], "prompt 3 is empty"),
        ([1, 39, 2], r"prompt 3 contains the mask token \(id 39\)"),
        ([1, 36], "prompt 3 contains token id 36: ids go from 0 to 35"),
        ([1, 400], "prompt 3 contains token id 400"),
        ([-1, 4], "prompt 3 contains token id -1"),
    ],
)
def test_prompts_that_cannot_be_used_say_why(tiny_llada, ids, why):
    denoiser = Denoiser.of(tiny_llada, Tokens(36))
    denoiser.check_prompt(torch.tensor([0, 35]))
    with pytest.raises(InputError, match=why) as caught:
        denoiser.check_prompt(torch.tensor(ids, dtype=torch.long), "prompt 3")
    assert "\n" not in str(caught.value)


@torch.no_grad()
def test_wrapped_models_are_seen_through(tiny_llada):
    """PEFT nests two wrappers, both of which pass unknown attributes on to their content."""
    wrapped = Adapter(Adapter(tiny_llada, "model"), "base_model")
    assert wrapped.head is not None
    assert unwrap(wrapped) is tiny_llada
    assert base_model(wrapped) is tiny_llada.model
    tokens = torch.randint(1, 39, (1, 4))
    at = torch.tensor([0]), torch.tensor([2])
    assert torch.equal(
        Denoiser.of(wrapped).logits(tokens, None, *at),
        Denoiser.of(tiny_llada).logits(tokens, None, *at),
    )
