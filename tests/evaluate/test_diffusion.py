import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from tests.evaluate.tiny import table_denoiser
from whet.errors import InputError, OptionError
from whet.evaluate.diffusion import Decoded, DiffusionModel
from whet.evaluate.encoding import TokenPair
from whet.evaluate.model import GenerationRequest, LikelihoodRequest
from whet.models.denoiser import BLANK
from whet.zoo.tokenizer import END, MASK, character_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(["ab", "bc"])


def random_table(tokenizer, *, shift=False, seed=0, context=64):
    """A masked LM in which every token sees all others: logits from a random network."""
    vocab = len(tokenizer)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(vocab, 16, dtype=torch.float64, generator=generator)
    mix = torch.randn(64, 64, dtype=torch.float64, generator=generator) / 4
    last = torch.randn(16, vocab, dtype=torch.float64, generator=generator)

    def logits_of(tokens):
        near = mix[: tokens.shape[1], : tokens.shape[1]]
        return torch.tanh(near @ first[tokens]) @ last

    return table_denoiser(
        logits_of, vocab=vocab, mask=tokenizer.mask_token_id, shift=shift, context=context
    )


def wrap(denoiser, tokenizer, **options):
    # The table knows no padding, so that rows of a batch must have one length: batches of one.
    return DiffusionModel(
        denoiser, tokenizer, name="tiny", **{"samples": 16, "batch_size": 1, **options}
    )


def asked(*pairs, question=0):
    return [LikelihoodRequest(context=a, continuation=b, question=question) for a, b in pairs]


# --- likelihoods -------------------------------------------------------------------------------


def test_texts_are_split_as_for_autoregressive_models(tokenizer):
    model = wrap(random_table(tokenizer), tokenizer, samples=127)

    def ids(text):
        return tuple(tokenizer(text)["input_ids"])

    cases = [
        ("xyz", "abc", ids("xyz"), ids("abc")),
        ("x \n", "abc", ids("x"), ids(" \nabc")),
        ("xa", "b7", ids("x"), ids("ab7")),
        ("", "abc", (), ids("abc")),  # nothing has to come first
    ]
    found = model.loglikelihood(asked(*[(a, b) for a, b, *_ in cases]))
    expected = model.score([TokenPair(c, t) for *_, c, t in cases])
    assert found == expected
    assert all(f.greedy is None and f.error == 0 for f in found)
    assert [f.tokens for f in found] == [len(t) for *_, t in cases]


def test_shifted_models_get_a_first_token(tokenizer):
    model = wrap(random_table(tokenizer, shift=True), tokenizer, samples=7)
    [found] = model.loglikelihood(asked(("", "abc")))
    target = tuple(tokenizer("abc")["input_ids"])
    [expected] = model.score([TokenPair((tokenizer.eos_token_id,), target)])
    assert found == expected
    with pytest.raises(InputError, match=r"64 tokens is too long .* at most 63 fit"):
        model.score([TokenPair((), (5,) * 64)])


def test_contexts_are_cut_on_the_left(tokenizer):
    model = wrap(random_table(tokenizer, context=12), tokenizer, samples=7)
    target, context = (5, 6, 7), tuple(range(10, 40))
    assert model.score([TokenPair(context, target)]) == model.score(
        [TokenPair(context[-9:], target)]
    )
    with pytest.raises(InputError, match=r"13 tokens is too long .* at most 12 fit"):
        model.score([TokenPair((1,), (5,) * 13)])


def test_choices_of_one_question_share_their_noise(tokenizer):
    """A continuation asked for twice: the same value in one question, another in the next."""
    model = wrap(random_table(tokenizer), tokenizer)
    one, same, other = (
        model.loglikelihood(asked(("Q", "123456789"), question=q))[0] for q in (1, 1, 2)
    )
    assert one == same
    assert one.value != other.value
    assert abs(one.value - other.value) < 6 * math.hypot(one.error, other.error)
    again = wrap(random_table(tokenizer), tokenizer, seed=1)
    assert again.loglikelihood(asked(("Q", "123456789"), question=1))[0] != one


def test_results_do_not_depend_on_order_or_batch():
    texts = ["", "7", "xyz", "2+3=5 or so", "no it is not"]
    pairs = [
        LikelihoodRequest(context=a, continuation=b, question=i)
        for i, (a, b) in enumerate(itertools.product(texts, texts[1:]))
    ]
    small = character_tokenizer()
    denoiser = tiny_llada_of(small)
    alone = wrap(denoiser, small, batch_size=1).loglikelihood(pairs)
    for batch_size, order in ((1, -1), (7, 1), (64, -1)):
        found = wrap(denoiser, small, batch_size=batch_size).loglikelihood(pairs[::order])[::order]
        np.testing.assert_allclose(
            [(f.value, f.error) for f in found], [(a.value, a.error) for a in alone], atol=1e-9
        )


def tiny_llada_of(tokenizer):
    """A LLaDA with an embedding for every character."""
    from whet.models.denoiser import Denoiser
    from whet.models.llada import LLaDAConfig, LLaDAModelLM

    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        n_layers=1,
        mlp_hidden_size=48,
        vocab_size=len(tokenizer),
        max_sequence_length=32,
        rope_theta=10000.0,
        init_std=0.2,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return Denoiser.of(LLaDAModelLM(config).double().eval(), tokenizer)


@pytest.mark.parametrize("shift", [False, True])
def test_rolling_adds_windows_given_the_window_before(tokenizer, shift):
    model = wrap(random_table(tokenizer, shift=shift, context=10), tokenizer, samples=31)
    text = "".join(chr(65 + i * 7 % 26) for i in range(13))
    ids = tuple(tokenizer(text)["input_ids"])
    first = (tokenizer.eos_token_id,) if shift else ()
    windows = [(first, ids[:5]), (ids[:5], ids[5:10]), (ids[5:10], ids[10:])]
    parts = model.score([TokenPair(*w) for w in windows])
    [found] = model.rolling([text])
    assert found.value == pytest.approx(sum(p.value for p in parts), abs=1e-9)
    assert (found.tokens, found.error) == (13, 0.0)


def test_errors_of_windows_add_up_and_texts_keep_their_own_noise(tokenizer):
    model = wrap(random_table(tokenizer, context=30), tokenizer)
    texts = ["".join(chr(97 + (i * k) % 26) for i in range(40)) for k in (3, 5, 7)]
    found = model.rolling(texts)
    assert model.rolling(texts[::-1]) == found[::-1]
    parts = model.score(
        [
            TokenPair(tuple(before), tuple(window), ("rolling", texts[0], i))
            for i, (before, window) in enumerate(windows_of(tokenizer, texts[0], 15))
        ]
    )
    assert found[0].error == pytest.approx(math.hypot(*(p.error for p in parts)))
    assert found[0].error > 0


def windows_of(tokenizer, text, size):
    ids = tokenizer(text)["input_ids"]
    for low in range(0, len(ids), size):
        yield ids[max(0, low - size) : low], ids[low : low + size]


def test_windows_of_block_causal_models_begin_with_blocks(tokenizer, tiny_sdar):
    sdar = tiny_sdar
    sdar.config.max_position_embeddings = 22  # half of it is 11: two blocks of 4 fit
    model = DiffusionModel(sdar, Ids(), name="sdar", samples=15)
    ids = [1 + i * 5 % 38 for i in range(19)]
    parts = model.score(
        [TokenPair(tuple(ids[max(0, i - 8) : i]), tuple(ids[i : i + 8])) for i in (0, 8, 16)]
    )
    [found] = model.rolling([" ".join(map(str, ids))])
    assert found.value == pytest.approx(sum(p.value for p in parts), abs=1e-9)
    assert found.error == 0


class Ids:
    """A tokenizer whose texts are lists of ids."""

    bos_token_id = eos_token_id = None
    all_special_ids: tuple[int, ...] = ()
    all_special_tokens: tuple[str, ...] = ()

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [int(word) for word in text.split() if word.isdigit()]}

    def get_vocab(self):
        return {}

    def __len__(self):
        return 40


def test_targets_no_mask_can_hide_are_refused(tokenizer):
    model = wrap(random_table(tokenizer), tokenizer)
    with pytest.raises(InputError, match="continuation holds the mask token"):
        model.loglikelihood(asked(("x", f"a{MASK}")))
    assert model.loglikelihood(asked((f"x{MASK}", "a")))[0].tokens == 1
    with pytest.raises(InputError, match="token id 500 is unknown"):
        model.score([TokenPair((1,), (500,))])
    blank = dataclasses.replace(random_table(tokenizer), mask_token_id=BLANK)
    with pytest.raises(OptionError, match="tiny has no mask token"):
        wrap(blank, tokenizer).loglikelihood(asked(("x", "y")))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 0}, "samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"estimator": "all"}, "estimator='all'"),
        ({"cfg_scale": -1.0}, "cfg_scale=-1"),
    ],
)
def test_options_that_cannot_be_are_refused(tokenizer, options, words):
    with pytest.raises(OptionError, match=words):
        wrap(random_table(tokenizer), tokenizer, **options)


# --- texts -------------------------------------------------------------------------------------


def canned(tokenizer, texts):
    """A decoder that fills canvases with given texts, last first."""

    def decode(requests):
        for place in reversed(range(len(requests))):
            ids = tokenizer(texts[place])["input_ids"]
            yield place, Decoded(ids[: requests[place].max_new_tokens], forwards=7.0)

    return decode


def test_texts_end_at_eos_or_a_stop_string_and_are_counted_up_to_there(tokenizer):
    cases = [
        # canvas, stop strings, then text, tokens, finish; "ab" and "bc" are single tokens
        (f"xab7{END}{END}junk", (), "xab7", 4, "stop"),
        ("xab7", (), "xab7", 3, "length"),
        ("xab7c", ("b7",), "xa", 3, "stop"),
        (f"xab7{END}b7", ("b7",), "xa", 3, "stop"),
        (f"x{END}ab7", ("b7",), "x", 2, "stop"),  # behind the end of the text
        ("7abc7", ("b", "abc"), "7a", 2, "stop"),  # the first to be complete
        (f"x{MASK}y", (), "xy", 3, "length"),  # special tokens are no text
        (f"xy{MASK}z", (MASK,), "xy", 3, "stop"),  # unless a stop string names them
        (f"{END}xy", (), "", 1, "stop"),
    ]
    decode = canned(tokenizer, [c[0] for c in cases])
    model = wrap(random_table(tokenizer), tokenizer, decode=decode)
    requests = [
        GenerationRequest(prompt="Q", max_new_tokens=30, stop=stop) for _, stop, *_ in cases
    ]
    found = dict(model.generate(requests))
    for place, (_, _, text, tokens, finish) in enumerate(cases):
        written = found[place]
        assert (written.text, written.tokens, written.finish) == (text, tokens, finish)
        assert written.forwards == 7.0


def test_a_decoder_of_the_library_writes_the_same_texts_here():
    import whet
    from whet.dlm.low_confidence import LowConfidence
    from whet.dlm.texts import TextRequest, generate_texts, stream_texts

    lm, tokenizer = whet.load("tiny-dlm")
    options = LowConfidence(block_length=4)

    def decode(requests):
        texts = (TextRequest(r.prompt, r.max_new_tokens, r.request) for r in requests)
        for place, done in stream_texts(lm, tokenizer, texts, options=options, batch_size=3):
            yield place, Decoded(done.tokens, done.steps)

    prompts = ["sort 3120456789=", "sort 99=", "sort 5210=", "permutation 1..4="]
    expected = list(
        generate_texts(lm, tokenizer, prompts, options=options, gen_length=12, batch_size=1)
    )
    model = DiffusionModel(lm, tokenizer, name="tiny-dlm", decode=decode, samples=8)
    requests = [GenerationRequest(prompt=p, max_new_tokens=12) for p in prompts]
    found = dict(model.generate(requests))
    for i, done in enumerate(expected):
        assert found[i].text == done.text
        assert found[i].tokens == done.answer_tokens
        assert found[i].forwards == done.steps
    cut = dict(model.generate([dataclasses.replace(r, stop=("2", "5")) for r in requests]))
    for i, done in enumerate(expected):
        assert cut[i].text == min((done.text.split(s)[0] for s in "25"), key=len)
    # A model that has learned to sort finds the sorted text likelier than another.
    right, wrong = model.loglikelihood(asked(("sort 5210=", "0125"), ("sort 5210=", "0152")))
    assert right.value > wrong.value
    assert right.value < 0


def test_without_a_decoder_there_are_no_texts(tokenizer):
    model = wrap(random_table(tokenizer), tokenizer)
    request = GenerationRequest(prompt="Q", max_new_tokens=3)
    with pytest.raises(OptionError, match="tiny was given no decoder"):
        next(model.generate([request]))
    model = wrap(random_table(tokenizer), tokenizer, decode=canned(tokenizer, ["a"]))
    with pytest.raises(OptionError, match="max_new_tokens=0"):
        next(model.generate([dataclasses.replace(request, max_new_tokens=0)]))
    assert (model.name, model.context_length, model.count_tokens("ab7")) == ("tiny", 64, 2)
