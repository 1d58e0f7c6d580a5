import itertools
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.evaluate.tiny import tiny_llama
from whet.errors import InputError, OptionError
from whet.evaluate.autoregressive import AutoregressiveModel
from whet.evaluate.encoding import TokenPair
from whet.evaluate.model import GenerationRequest, LikelihoodRequest
from whet.zoo.tokenizer import END, character_tokenizer

WORDS = ("ab", "bc", "the ", "stop")


def tokenizer_with(words=WORDS, *, bos=False, pad=True):
    tokenizer = character_tokenizer(words)
    if bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.add_special_tokens({"bos_token": "<s>"})
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    if not pad:
        tokenizer.pad_token = None
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with()


@pytest.fixture(scope="module")
def llama(tokenizer):
    return tiny_llama(len(tokenizer))


def wrap(llama, tokenizer, **options):
    return AutoregressiveModel(llama, tokenizer, name="tiny", **{"batch_size": 8, **options})


def pieces(count, *, longest, seed=0):
    """Texts of 1 to `longest` words, letters and digits."""
    draw = random.Random(seed)
    symbols = ["ab", "bc", "the ", "a", "b", "c", "7", "x", " ", "-"]
    return ["".join(draw.choices(symbols, k=draw.randint(1, longest))) for _ in range(count)]


def chain(llama, ids, start):
    """log p(ids[start:] | ids[:start]) one token and one forward at a time, and if it is greedy."""
    total, greedy = 0.0, True
    with torch.no_grad():
        for place in range(start, len(ids)):
            logits = llama(torch.tensor([ids[:place]])).logits[0, -1].double()
            total += float(logits.log_softmax(-1)[ids[place]])
            greedy = greedy and int(logits.argmax()) == ids[place]
    return total, greedy


# --- lm-evaluation-harness on the same model ---------------------------------------------------


@pytest.fixture(scope="module")
def harness(llama, tokenizer):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=llama, tokenizer=tokenizer, batch_size=4, device="cpu", max_length=64)


def asked_of(harness, kind, arguments):
    return getattr(harness, kind)([SimpleNamespace(args=a) for a in arguments], disable_tqdm=True)


def across(tokenizer, context, continuation):
    before = tokenizer(context.rstrip())["input_ids"]
    return tokenizer(context + continuation)["input_ids"][: len(before)] != before


@pytest.mark.parametrize("batch_size", [1, 8])
def test_loglikelihoods_equal_those_of_the_harness(llama, tokenizer, harness, batch_size):
    contexts = pieces(70, longest=20, seed=1)
    pairs = list(zip(contexts, pieces(70, longest=8, seed=2), strict=True))
    pairs += [("", "ab7"), ("x " * 60, "the ab"), ("7-x", "a"), ("7-x", "b"), ("7-x  ", "c")]
    model = wrap(llama, tokenizer, batch_size=batch_size)
    # Greedy continuations, which random ones hardly ever are.
    for place, text in model.generate(
        [GenerationRequest(prompt=c, max_new_tokens=2) for c in contexts[:10]]
    ):
        if text.finish == "length":
            pairs.append((contexts[place], text.text))
    # Where a token lies across the border, the harness loses half of it.
    pairs = [(a, b) for a, b in pairs if not across(tokenizer, a, b)]
    assert len(pairs) >= 50
    expected = asked_of(harness, "loglikelihood", pairs)
    found = model.loglikelihood(
        [LikelihoodRequest(context=a, continuation=b) for a, b in pairs],
    )
    assert {e[1] for e in expected} == {True, False}
    for f, (value, greedy) in zip(found, expected, strict=True):
        assert f.value == pytest.approx(value, abs=1e-4), pairs[found.index(f)]
        assert f.greedy == greedy
        assert f.error == 0


@pytest.mark.parametrize("batch_size", [1, 8])
def test_greedy_texts_equal_those_of_the_harness(llama, tokenizer, harness, batch_size):
    prompts = pieces(50, longest=20, seed=3)
    draw = random.Random(0)
    stops = [tuple(draw.sample(["ab", "c7", "x", "the the", "-", "bb"], k=2)) for _ in prompts]
    lengths = [draw.choice([3, 9, 16]) for _ in prompts]
    arguments = [
        (p, {"until": list(s), "max_gen_toks": n, "do_sample": False})
        for p, s, n in zip(prompts, stops, lengths, strict=True)
    ]
    expected = asked_of(harness, "generate_until", arguments)
    model = wrap(llama, tokenizer, batch_size=batch_size)
    requests = [
        GenerationRequest(prompt=p, stop=s, max_new_tokens=n)
        for p, s, n in zip(prompts, stops, lengths, strict=True)
    ]
    found = dict(model.generate(requests))
    assert [found[i].text for i in range(50)] == expected
    assert len(set(expected)) > 30
    assert {f.finish for f in found.values()} == {"stop", "length"}


def test_rolling_equals_that_of_the_harness(llama, tokenizer, harness):
    texts = [
        "".join(pieces(1, longest=n, seed=n)) * k for n, k in ((5, 1), (20, 3), (40, 9), (40, 11))
    ]
    assert max(len(tokenizer(t)["input_ids"]) for t in texts) > 128
    expected = asked_of(harness, "loglikelihood_rolling", [(t,) for t in texts])
    found = wrap(llama, tokenizer).rolling(texts)
    assert [f.value for f in found] == pytest.approx(expected, abs=2e-3)
    assert [f.tokens for f in found] == [len(tokenizer(t)["input_ids"]) for t in texts]


# --- likelihoods -------------------------------------------------------------------------------


def test_probabilities_of_all_texts_of_a_length_sum_to_one():
    tokenizer = character_tokenizer()
    model = wrap(tiny_llama(12, dtype=torch.float64), tokenizer, batch_size=50)
    pairs = [TokenPair((3, 4), t) for t in itertools.product(range(12), repeat=2)]
    assert sum(math.exp(f.value) for f in model.score(pairs)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("bos", [False, True])
def test_a_likelihood_is_the_chain_of_its_tokens(bos):
    tokenizer = tokenizer_with(bos=bos)
    llama = tiny_llama(len(tokenizer), dtype=torch.float64)
    first = tokenizer.bos_token_id if bos else tokenizer.eos_token_id

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    start = [first] if bos else []
    cases = [
        ("xyz", "abc", start + ids("xyz"), ids("abc")),
        ("", "abc", [first], ids("abc")),
        ("  ", "abc", [first], ids("  abc")),
        ("x \n", "abc", start + ids("x"), ids(" \nabc")),
        # "a" + "b7" is encoded as "ab", "7": the token across the border is a target.
        ("xa", "b7", start + ids("x"), ids("ab7")),
        ("the", " ab", start or [first], ids("the ab")),
    ]
    model = wrap(llama, tokenizer)
    found = model.loglikelihood(
        [LikelihoodRequest(context=a, continuation=b) for a, b, *_ in cases]
    )
    for f, (_, _, context, target) in zip(found, cases, strict=True):
        value, greedy = chain(llama, context + target, len(context))
        assert f.value == pytest.approx(value, abs=1e-9)
        assert (f.greedy, f.tokens) == (greedy, len(target))
    # A text that brings its own BOS gets no second one.
    if bos:
        asked = [LikelihoodRequest(context=c, continuation="abc") for c in ("xyz", "<s>xyz")]
        one, two = model.loglikelihood(asked)
        assert one == two
        assert model.encode("<s>xyz") == model.encode("xyz") == [first, *ids("xyz")]


def test_contexts_are_cut_on_the_left_and_continuations_are_kept_whole(llama, tokenizer):
    model = wrap(llama, tokenizer, context_length=16)
    ids = [5 + i % 60 for i in range(40)]
    for count in (1, 5, 15, 16):
        [found] = model.score([TokenPair(tuple(ids[: 40 - count]), tuple(ids[40 - count :]))])
        value, _ = chain(llama, ids[-17:], 17 - count)
        assert found.value == pytest.approx(value, abs=1e-4)
    with pytest.raises(InputError, match=r"continuation of 17 tokens.*at most 16 fit"):
        model.score([TokenPair((1,), tuple(ids[:17]))])


def test_neither_order_nor_batch_size_changes_likelihoods(tokenizer):
    llama = tiny_llama(len(tokenizer), dtype=torch.float64)
    contexts, ends = pieces(23, longest=25, seed=5), pieces(23, longest=6, seed=6)
    asked = [
        LikelihoodRequest(context=c, continuation=e)
        for c, e in [*zip(contexts, ends, strict=True), ("x", "a"), ("x", "b"), ("x", "xa")]
    ]
    alone = wrap(llama, tokenizer, batch_size=1).loglikelihood(asked)
    for batch_size in (4, 50):
        model = wrap(llama, tokenizer, batch_size=batch_size)
        for requests, expected in ((asked, alone), (asked[::-1], alone[::-1])):
            found = model.loglikelihood(requests)
            np.testing.assert_allclose(
                [f.value for f in found], [e.value for e in expected], atol=1e-9
            )
            assert [f.greedy for f in found] == [e.greedy for e in expected]


def test_choices_of_one_token_share_a_forward(llama, tokenizer, monkeypatch):
    rows = []
    model = wrap(llama, tokenizer, batch_size=2)
    plain = model._logits
    monkeypatch.setattr(
        model, "_logits", lambda ids, low: (rows.extend(map(tuple, ids)), plain(ids, low))[1]
    )
    model.loglikelihood([LikelihoodRequest(context="Q", continuation=c) for c in "ABCDE"])
    assert len(rows) == 1


def test_half_precision_is_summed_in_float32(tokenizer):
    llama = tiny_llama(len(tokenizer)).to(torch.bfloat16)
    llama.lm_head.weight.data.zero_()
    [found] = wrap(llama, tokenizer).score([TokenPair((3,), tuple([4] * 60))])
    assert found.value == pytest.approx(-60 * math.log(len(tokenizer)), rel=1e-6)


def test_models_that_cannot_keep_few_logits_score_the_same(llama, tokenizer):
    class Wrapped(torch.nn.Module):
        """As PEFT's wrappers: any arguments."""

        def __init__(self):
            super().__init__()
            self.inner, self.config, self.device = llama, llama.config, llama.device

        def forward(self, *args, **kwargs):
            assert "logits_to_keep" not in kwargs
            return self.inner(*args, **kwargs)

    asked = [LikelihoodRequest(context="xy" * k, continuation="ab" * (5 - k)) for k in range(1, 5)]
    expected = wrap(llama, tokenizer).loglikelihood(asked)
    found = wrap(Wrapped(), tokenizer).loglikelihood(asked)
    for f, e in zip(found, expected, strict=True):
        assert f.value == pytest.approx(e.value, abs=1e-5)


# --- rolling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [False, True])
def test_rolling_windows_predict_every_token_once(bos):
    tokenizer = tokenizer_with(bos=bos)
    llama = tiny_llama(len(tokenizer), dtype=torch.float64)
    model = wrap(llama, tokenizer, context_length=10)
    first = tokenizer.bos_token_id if bos else tokenizer.eos_token_id
    for length in (1, 9, 10, 11, 20, 27):
        ids = [5 + i * i % 60 for i in range(length)]
        whole = [first, *ids]
        text = tokenizer.decode(ids)
        expected, low = 0.0, 1
        while low < len(whole):
            high = min(low + 10, len(whole))
            expected += chain(llama, whole[max(0, high - 11) : high], low - max(0, high - 11))[0]
            low = high
        [found] = model.rolling([text])
        assert found.value == pytest.approx(expected, abs=1e-9)
        assert found.tokens == length
    assert model.rolling([]) == []
    assert model.rolling([""])[0].tokens == 0


# --- texts -------------------------------------------------------------------------------------


def one_by_one(llama, tokenizer, prompt, request, u):
    """Tokens of a text, one forward each, without cache or batch."""
    ids = tokenizer(prompt)["input_ids"] or [tokenizer.eos_token_id]
    written = []
    while len(written) < request.max_new_tokens:
        with torch.no_grad():
            logits = llama(torch.tensor([ids + written])).logits[0, -1].double()
        if request.temperature == 0:
            written.append(int(logits.argmax()))
        else:
            cumulated = (logits / request.temperature).softmax(-1).cumsum(-1)
            written.append(int((cumulated > u[len(written)] * cumulated[-1]).nonzero()[0]))
        if written[-1] == tokenizer.eos_token_id:
            break
    return written


def mixed(count=12):
    return [
        GenerationRequest(
            prompt=prompt,
            max_new_tokens=3 + 5 * (i % 4),
            temperature=(0.0, 0.7, 1.5)[i % 3],
            request=i,
        )
        for i, prompt in enumerate(["", *pieces(count - 1, longest=20, seed=8)])
    ]


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_texts_are_those_of_a_plain_loop_in_any_batch(tokenizer, batch_size):
    from whet.rng import keyed

    llama = tiny_llama(len(tokenizer), dtype=torch.float64)
    requests = mixed()
    model = wrap(llama, tokenizer, batch_size=batch_size, seed=4)
    found = dict(model.generate(requests))
    reverse = dict(model.generate(requests[::-1]))
    for i, request in enumerate(requests):
        u = keyed(4, "generate", i).random(request.max_new_tokens)
        ids = one_by_one(llama, tokenizer, request.prompt, request, u)
        ended = ids[-1] == tokenizer.eos_token_id
        assert found[i].text == tokenizer.decode(ids, skip_special_tokens=True)
        assert found[i].tokens == found[i].forwards == len(ids)
        assert found[i].finish == ("stop" if ended else "length")
        assert reverse[len(requests) - 1 - i] == found[i]


def test_samples_come_from_their_key_and_follow_the_distribution(tokenizer):
    llama = tiny_llama(len(tokenizer))
    model = wrap(llama, tokenizer, batch_size=256)
    asked = [
        GenerationRequest(prompt="x7", max_new_tokens=1, temperature=1.2, request=i)
        for i in range(1500)
    ]
    texts = [g.text for _, g in sorted(model.generate(asked))]
    assert texts == [g.text for _, g in sorted(model.generate(asked))]
    other = wrap(llama, tokenizer, batch_size=256, seed=1)
    assert texts != [g.text for _, g in sorted(other.generate(asked))]
    with torch.no_grad():
        logits = llama(torch.tensor([tokenizer("x7")["input_ids"]])).logits[0, -1] / 1.2
    for token in logits.topk(3).indices.tolist():
        p = float(logits.softmax(-1)[token])
        share = texts.count(tokenizer.decode([token])) / 1500
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 1500)


def scripted(tokenizer, text, *, vocab=None):
    """A Llama-shaped model that writes `text` behind any prompt of one token, then EOS."""
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    llama = tiny_llama(vocab or len(tokenizer))

    def forward(input_ids=None, **kwargs):
        past = kwargs["past_key_values"].get_seq_length() if kwargs.get("past_key_values") else 0
        out = plain(input_ids=input_ids, **kwargs)
        real = kwargs["attention_mask"][:, : past + input_ids.shape[1]].sum(-1)
        out.logits = torch.full_like(out.logits, -50.0)
        for row, count in enumerate(real.tolist()):
            out.logits[row, -1, ids[min(count - 1, len(ids) - 1)]] = 50.0
        return out

    plain = llama.forward
    llama.forward = forward
    return llama


def test_stop_strings_are_found_across_tokens_and_never_shown(tokenizer):
    cases = [
        # "xab7" is written x, ab, 7; "b7" lies across two tokens.
        (("b7",), "xa", 3, "stop"),
        (("ab",), "x", 2, "stop"),
        (("cd", "7c"), "xab", 4, "stop"),
        (("zz",), "xab7cd", 6, "stop"),  # ends by itself: EOS is the sixth
        (("x",), "", 1, "stop"),
        ((END,), "xab7cd", 6, "stop"),
    ]
    model = AutoregressiveModel(scripted(tokenizer, "xab7cd"), tokenizer, name="t", batch_size=4)
    asked = [GenerationRequest(prompt="Q", max_new_tokens=20, stop=s) for s, *_ in cases]
    asked.append(GenerationRequest(prompt="Q", max_new_tokens=2))
    found = dict(model.generate(asked))
    for i, (_, text, tokens, finish) in enumerate(cases):
        assert (found[i].text, found[i].tokens, found[i].finish) == (text, tokens, finish)
        assert found[i].forwards == tokens
    assert (found[6].text, found[6].tokens, found[6].finish) == ("xab", 2, "length")


def test_stop_strings_never_appear_in_random_texts(llama, tokenizer):
    model = wrap(llama, tokenizer)
    stop = ("ab", "x", "c7", "e s")
    asked = [replace(r, stop=stop, max_new_tokens=16) for r in mixed(20)]
    for place, text in model.generate(asked):
        assert not any(s in text.text for s in stop)
        assert END not in text.text
        assert not asked[place].prompt or not text.text.startswith(asked[place].prompt)


def test_tokenizers_without_padding_work(llama):
    bare = tokenizer_with(pad=False)
    assert bare.pad_token_id is None
    requests = mixed(6)
    expected = dict(wrap(llama, tokenizer_with(), batch_size=3).generate(requests))
    assert dict(wrap(llama, bare, batch_size=3).generate(requests)) == expected


def test_generation_settings_of_a_checkpoint_do_not_change_greedy_texts(tokenizer):
    llama = tiny_llama(len(tokenizer))
    asked = [GenerationRequest(prompt="xyxyxy", max_new_tokens=12)]
    [(_, plain)] = wrap(llama, tokenizer).generate(asked)
    settings = llama.generation_config
    settings.repetition_penalty, settings.no_repeat_ngram_size = 5.0, 1
    settings.do_sample, settings.temperature, settings.top_k = True, 9.0, 3
    [(_, found)] = wrap(llama, tokenizer).generate(asked)
    assert found == plain
    assert settings.repetition_penalty == 5.0


def test_every_end_token_of_the_checkpoint_ends_a_text(tokenizer):
    llama = scripted(tokenizer, "xab7cd")
    llama.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer("7")["input_ids"][0]]
    [(_, found)] = wrap(llama, tokenizer).generate(
        [GenerationRequest(prompt="Q", max_new_tokens=20)]
    )
    assert (found.text, found.tokens, found.finish) == ("xab", 3, "stop")


# --- what cannot be done -----------------------------------------------------------------------


def test_what_cannot_be_used_is_refused_in_one_sentence(llama, tokenizer):
    model = wrap(llama, tokenizer)
    assert (model.name, model.context_length) == ("tiny", 64)
    assert model.count_tokens("ab7") == 2
    fine = GenerationRequest(prompt="x", max_new_tokens=4)
    for bad, error, words in (
        (replace(fine, prompt="y" * 61), InputError, "61 tokens and max_new_tokens=4 .* 64"),
        (replace(fine, max_new_tokens=0), OptionError, "max_new_tokens=0"),
        (replace(fine, temperature=-1.0), OptionError, "temperature=-1"),
    ):
        with pytest.raises(error, match=words):
            next(iter(model.generate([fine, bad])))
    for continuation in ("", "   "[:0]):
        with pytest.raises(InputError, match="holds no token"):
            model.loglikelihood([LikelihoodRequest(context="x", continuation=continuation)])
    with pytest.raises(OptionError, match="batch_size=0"):
        wrap(llama, tokenizer, batch_size=0)
    assert list(model.generate([])) == []
    assert model.loglikelihood([]) == []
