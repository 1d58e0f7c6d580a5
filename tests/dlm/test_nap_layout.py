"""Tags, slots and grown heads of NAP."""

import pytest
import torch

from whet.dlm.nap.layout import (
    Layout,
    add_tags,
    all_tags,
    grow_head,
    path_tags,
    tag_ids,
)
from whet.errors import CheckpointError, InputError, OptionError
from whet.zoo.tokenizer import character_tokenizer

TAGS = list(range(100, 108))
EOS, MASK = 0, 39


def test_packed_texts_are_tags_and_parts():
    layout = Layout(2, None, None)
    made = layout.response([[1, 2, 3], [4], [5, 6]], TAGS[:6], EOS)
    assert made.tokens == [100, 1, 2, 3, 101, 102, 4, 103, 104, 5, 6, 105]
    assert made.block == [1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert [i for i, t in enumerate(made.tag) if t] == [0, 4, 5, 7, 8, 11]
    assert layout.fits([[1] * 999] * 3)


def test_slots_are_filled_with_end_of_text_before_the_closing_tag():
    layout = Layout(2, 3, 2)
    made = layout.response([[1], [4, 5, 6], [7]], TAGS[:6], EOS)
    assert made.tokens == [100, 1, 0, 0, 101, 102, 4, 5, 6, 103, 104, 7, 0, 105]
    assert made.block == [1] * 5 + [2] * 5 + [3] * 4
    assert len(made) == layout.width == 14


@pytest.mark.parametrize("paths", [1, 3, 6])
def test_a_canvas_is_a_response_whose_slots_are_masked(paths):
    layout = Layout(paths, 5, 2)
    tags = list(range(100, 100 + 2 * paths + 2))
    canvas = layout.canvas(tags, MASK)
    made = layout.response([[7] * 5] * paths + [[8] * 2], tags, EOS)
    assert len(canvas) == layout.width
    assert [c for c, t in zip(canvas, made.tag, strict=True) if t] == tags
    assert all(c == MASK for c, t in zip(canvas, made.tag, strict=True) if not t)
    spans = layout.spans()
    assert [b - a for a, b in spans] == layout.lengths
    assert all(canvas[c] == MASK for a, b in spans for c in range(a, b))
    assert sum(c == MASK for c in canvas) == sum(layout.lengths)


def test_tags_name_their_path():
    assert path_tags(2) == ("<think 2>", "</think 2>")
    assert all_tags(2) == [
        "<think 1>", "</think 1>", "<think 2>", "</think 2>", "<summary>", "</summary>",
    ]  # fmt: skip
    tokenizer = character_tokenizer(words=all_tags(2))
    ids = tag_ids(tokenizer, 2)
    assert tokenizer("".join(all_tags(2)), add_special_tokens=False)["input_ids"] == ids
    with pytest.raises(CheckpointError, match=r"no token '<think 3>': .* on 3 paths"):
        tag_ids(tokenizer, 3)


@pytest.mark.parametrize("family", ["tiny_llada", "tiny_dream"])
def test_a_head_only_ever_grows(request, family):
    model = request.getfixturevalue(family)
    x = torch.arange(1, 9)[None]
    before = model(x).logits
    embedding = model.get_input_embeddings().weight.clone()
    grow_head(model, 35, 30)  # fewer than it has: rows 30 to 34 were padding
    assert model.get_input_embeddings().weight.shape[0] == 40 == model.config.vocab_size
    after = model(x).logits
    assert torch.equal(after[..., :30], before[..., :30])
    assert torch.equal(after[..., 35:], before[..., 35:])
    grow_head(model, 46, 40)
    grown = model.get_input_embeddings().weight
    assert grown.shape[0] == 46 == model.config.vocab_size
    assert torch.equal(grown[:30], embedding[:30])
    assert torch.allclose(grown[40:], grown[:40].mean(0).expand(6, -1))
    logits = model(x).logits
    assert logits.shape[-1] == 46
    assert torch.allclose(logits[..., :40], after, atol=1e-12)
    assert torch.allclose(model(torch.tensor([[45]])).logits, model(torch.tensor([[44]])).logits)


def test_a_tied_head_stays_tied():
    from whet.models.llada import LLaDAConfig, LLaDAModelLM

    config = LLaDAConfig(
        d_model=16, n_heads=2, n_layers=1, mlp_hidden_size=16, vocab_size=40, weight_tying=True,
        max_sequence_length=32, mask_token_id=MASK, eos_token_id=EOS, pad_token_id=EOS,
    )  # fmt: skip
    model = LLaDAModelLM(config)
    grow_head(model, 44, 40)
    assert model(torch.tensor([[1, 43]])).logits.shape[-1] == 44
    assert len([p for p in model.parameters() if 44 in p.shape]) == 1


def test_a_grown_model_is_saved_and_comes_back(tiny_llada, tmp_path):
    from whet.models.llada import LLaDAModelLM

    tokenizer = character_tokenizer()
    tiny_llada.config.mask_token_id = tokenizer.mask_token_id
    grow_head(tiny_llada, len(tokenizer), 40)
    assert add_tags(tiny_llada, tokenizer, 3) == 10  # think marks, six tags, two of the summary
    assert add_tags(tiny_llada, tokenizer, 3) == 0
    assert tiny_llada.config.vocab_size == len(tokenizer)
    tiny_llada.save_pretrained(tmp_path)
    again = LLaDAModelLM.from_pretrained(tmp_path, dtype=torch.float64)
    x = torch.tensor([tag_ids(tokenizer, 3)])
    assert torch.equal(again(x).logits, tiny_llada(x).logits)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ((0, 4, 2), "paths=0 must be between 1 and 6"),
        ((7, 4, 2), "paths=7"),
        ((3, 0, 2), "path_length=0 must be at least 1"),
        ((3, 4, 0), "summary_length=0"),
        ((3, 4, None), "give both"),
        ((3, None, 4), "give both"),
    ],
)
def test_impossible_layouts_are_refused(settings, says):
    with pytest.raises(OptionError, match=says):
        Layout(*settings)


def test_what_does_not_fit_is_refused():
    layout = Layout(2, 3, 2)
    assert not layout.fits([[1] * 4, [1], [1]])
    with pytest.raises(InputError, match="parts of 4, 1, 1 tokens do not fit slots of 3, 3, 2"):
        layout.response([[1] * 4, [1], [1]], TAGS, EOS)
    with pytest.raises(InputError, match="2 parts were given: 2 paths and a summary"):
        layout.response([[1], [1]], TAGS, EOS)
    with pytest.raises(InputError, match="holds a tag"):
        layout.response([[1], [TAGS[2]], [1]], TAGS, EOS)
    with pytest.raises(OptionError, match="path_length is not given"):
        Layout(2, None, None).canvas(TAGS, MASK)
