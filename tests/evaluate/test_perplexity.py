import hashlib
import math

import pytest
import torch

from tests.evaluate.tiny import table_denoiser, tiny_llama
from whet.errors import InputError, OptionError
from whet.evaluate.autoregressive import AutoregressiveModel
from whet.evaluate.diffusion import DiffusionModel
from whet.evaluate.perplexity import comparison, file_perplexity, perplexity
from whet.zoo.tokenizer import character_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


def text_of(length, step=7):
    return "".join(chr(40 + i * i * step % 80) for i in range(length))


def wrap(llama, tokenizer, batch_size=8):
    return AutoregressiveModel(llama, tokenizer, name="tiny", batch_size=batch_size)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tokenizer):
    llama = tiny_llama(len(tokenizer))
    llama.lm_head.weight.data.zero_()
    found = perplexity(wrap(llama, tokenizer), text_of(100), window=16)
    assert found.value == pytest.approx(len(tokenizer), rel=1e-6)
    assert (found.windows, found.tokens, found.window) == (6, 96, 16)
    assert found.error == 0
    assert not found.bound


def test_a_model_that_knows_the_text_has_perplexity_one(tokenizer):
    """Each character is followed by the next in the alphabet, and the model says so."""
    llama = tiny_llama(len(tokenizer), dtype=torch.float64)
    plain = llama.forward

    def forward(input_ids=None, **kwargs):
        out = plain(input_ids=input_ids, **kwargs)
        follow = (input_ids + 1)[:, -out.logits.shape[1] :]
        out.logits = 60.0 * torch.nn.functional.one_hot(follow, len(tokenizer)).double()
        return out

    forward.__signature__ = __import__("inspect").signature(plain)
    llama.forward = forward
    letters = tokenizer.decode(list(range(5, 95)))
    found = perplexity(wrap(llama, tokenizer), letters, window=30)
    assert found.value == pytest.approx(1.0, abs=1e-12)


def test_the_protocol_is_that_of_the_literature(tokenizer):
    """Written out as the published scripts compute it: mean over T - 1, times T, over n T."""
    llama, text, T = tiny_llama(len(tokenizer)), text_of(170), 32
    ids = torch.tensor(tokenizer(text)["input_ids"])
    n, nlls = len(ids) // T, []
    for i in range(n):
        batch = ids[None, i * T : (i + 1) * T]
        with torch.no_grad():
            logits = llama(batch).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits[0], batch[0, 1:])
        nlls.append(loss * T)
    expected = float(torch.exp(torch.stack(nlls).sum() / (n * T)))
    for batch_size in (1, 3, 8):
        found = perplexity(wrap(llama, tokenizer, batch_size), text, window=T)
        assert found.value == pytest.approx(expected, rel=1e-5)
        assert found.windows == n == 5


def test_windows_may_come_in_any_order(tokenizer):
    llama, T = tiny_llama(len(tokenizer), dtype=torch.float64), 20
    parts = [text_of(T, step) for step in (3, 7, 11, 13, 17)]
    model = wrap(llama, tokenizer)
    one = perplexity(model, "".join(parts), window=T)
    two = perplexity(model, "".join(parts[::-1]) + "rest", window=T)
    assert one.value == pytest.approx(two.value, rel=1e-12)
    assert one.sha256 != two.sha256


def test_text_is_tokenised_once_with_the_tokenizers_own_beginning(tokenizer):
    from tests.evaluate.test_autoregressive import tokenizer_with

    framed = tokenizer_with((), bos=True)
    llama = tiny_llama(len(framed), dtype=torch.float64)
    text, T = text_of(31), 16
    ids = [framed.bos_token_id, *framed(text, add_special_tokens=False)["input_ids"]]
    total = 0.0
    for low in (0, 16):
        with torch.no_grad():
            logits = llama(torch.tensor([ids[low : low + T]])).logits[0]
        total += float(logits.log_softmax(-1)[range(T - 1), ids[low + 1 : low + T]].sum())
    found = perplexity(wrap(llama, framed), text, window=T)
    assert found.windows == 2
    assert found.value == pytest.approx(math.exp(-total / 30), rel=1e-9)


# --- masked models -----------------------------------------------------------------------------


def masked(tokenizer, logits, shift=False):
    denoiser = table_denoiser(
        lambda t: logits.expand(*t.shape, -1).clone(),
        vocab=len(tokenizer),
        mask=tokenizer.mask_token_id,
        shift=shift,
    )
    return DiffusionModel(denoiser, tokenizer, name="masked", samples=32)


@pytest.mark.parametrize("shift", [False, True])
def test_a_uniform_masked_model_has_its_vocabulary_without_the_mask(tokenizer, shift):
    model = masked(tokenizer, torch.zeros(len(tokenizer), dtype=torch.float64), shift)
    found = perplexity(model, text_of(70), window=16)
    assert found.value == pytest.approx(len(tokenizer) - 1, rel=1e-9)
    assert found.error == pytest.approx(0, abs=1e-6)
    assert found.bound
    assert not found.comparable
    assert "upper bound" in found.reason
    assert "bound" in found.protocol


def test_the_error_of_a_masked_models_bound_covers_other_seeds(tokenizer):
    logits = torch.randn(
        len(tokenizer), dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    )
    found = []
    for seed in range(60):
        model = masked(tokenizer, logits)
        model.seed = seed
        found.append(perplexity(model, text_of(70), window=16))
    values = torch.tensor([f.value for f in found])
    errors = torch.tensor([f.error for f in found])
    # Every token has the same nats whatever is masked, so that the bound is the mean over tokens.
    ids = torch.tensor(tokenizer(text_of(70))["input_ids"][:64]).view(4, 16)[:, 1:]
    plain = logits.clone()
    plain[tokenizer.mask_token_id] = -torch.inf
    exact = float(-plain.log_softmax(-1)[ids].mean())
    z = (values.log() - exact) / (errors / values)
    assert abs(z.mean()) < 4 / math.sqrt(60)
    assert 0.7 < z.std() < 1.4


# --- labels ------------------------------------------------------------------------------------

RAW = "\n\n = Robert Boulter = \n\n\n\n\n Robert Boulter is an English film @-@ actor . \n"


def test_only_the_raw_test_split_is_comparable():
    whole = RAW + "x" * 1_250_000
    assert comparison(whole, window=2048, bound=False)[0]
    assert comparison(whole, window=4096, bound=False)[0]
    for text, window, bound, words in (
        (whole, 2048, True, "upper bound"),
        (whole, 512, False, "not 512"),
        (RAW, 2048, False, "not WikiText-2's raw test split"),
        (whole[1:], 2048, False, "though tokenised like it"),
        (whole + " a <unk> b", 2048, False, "rare words are <unk>"),
        ("To be , or not to be", 2048, False, "not WikiText-2's raw test split"),
    ):
        comparable, reason = comparison(text, window=window, bound=bound)
        assert not comparable
        assert words in reason


def test_a_result_names_its_file(tokenizer, tmp_path):
    path = tmp_path / "speech.txt"
    path.write_bytes(("Friends,\r\nRomans " * 9).encode())
    model = wrap(tiny_llama(len(tokenizer)), tokenizer)
    found = file_perplexity(model, path, window=8)
    assert found.file == "speech.txt"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert not found.comparable
    assert "windows of 8" in found.protocol
    for bad in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match="not a readable UTF-8 text"):
            file_perplexity(model, bad, window=8)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a readable UTF-8 text"):
        file_perplexity(model, path, window=8)


def test_what_cannot_be_measured_is_refused_in_one_sentence(tokenizer):
    model = wrap(tiny_llama(len(tokenizer)), tokenizer)
    with pytest.raises(InputError, match="text has 31 tokens: at least one window=32 is needed"):
        perplexity(model, text_of(31), window=32)
    with pytest.raises(InputError, match="text has 0 tokens"):
        perplexity(model, "", window=32)
    with pytest.raises(OptionError, match="window=65 exceeds the model's context of 64"):
        perplexity(model, text_of(100), window=65)
    with pytest.raises(OptionError, match="window=1 must be at least 2"):
        perplexity(model, text_of(100), window=1)
