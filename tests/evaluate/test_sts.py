import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from whet.errors import InputError, OptionError
from whet.evaluate.sts import (
    Pair,
    embed,
    read_pairs,
    similarity,
    spearman,
    spearman_difference,
)
from whet.zoo.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
TEXTS = ["abc", "a much longer sentence than that", "de", "", "abcd"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=16,
        vocab_size=257,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return BertModel(config).eval()


def brute_ranks(values):
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_pearson_of_mean_ranks(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 30), rng.integers(0, 9, 30)
    expected = np.corrcoef(brute_ranks(a.tolist()), brute_ranks(b.tolist()))[0, 1]
    assert spearman(a, b) == pytest.approx(expected)


def test_spearman_sees_order_alone():
    a = np.array([0.1, 0.4, 0.2, 5.0])
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(a, np.ones(4)) == 0


@pytest.mark.parametrize(
    ("a", "b", "why"),
    [([1.0], [1.0], "two equal lists"), ([1, 2], [1, 2, 3], "two equal lists"),
     ([1, float("nan")], [1, 2], "finite")],
)  # fmt: skip
def test_impossible_correlations_say_why(a, b, why):
    with pytest.raises(InputError, match=why):
        spearman(a, b)


def test_a_difference_is_none_of_a_ranking_with_itself():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=60)
    near, far = gold + 0.1 * rng.normal(size=60), gold + 3 * rng.normal(size=60)
    assert spearman_difference(near, near, gold, resamples=50) == (0, 0, 0)
    value, low, high = spearman_difference(near, far, gold, resamples=200)
    assert 0 < low < value < high
    assert value == pytest.approx(spearman(near, gold) - spearman(far, gold))


def test_embeddings_do_not_depend_on_their_batch(model):
    together, _ = embed(model, TOKENIZER, TEXTS, max_length=40, batch_size=5)
    alone, cut = embed(model, TOKENIZER, TEXTS, max_length=40, batch_size=1)
    kept = [0, 1, 2, 4]
    assert cut == 0
    torch.testing.assert_close(together[kept], alone[kept], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[kept].norm(dim=-1), torch.ones(4))


def test_an_embedding_is_the_mean_of_the_hidden_states(model):
    found, cut = embed(model, TOKENIZER, ["abcdef"], max_length=4, batch_size=1)
    with torch.no_grad():
        states = model(input_ids=torch.tensor([TOKENIZER("abcd")["input_ids"]]))[0]
    expected = torch.nn.functional.normalize(states.mean(1), dim=-1)
    torch.testing.assert_close(found, expected)
    assert cut == 1


def test_similarity_of_pairs(model):
    pairs = [Pair("abc", "abc", 5), Pair("abc", "zzzzzz", 0), Pair("abc", "abd", 4)]
    found = similarity(model, TOKENIZER, pairs)
    assert found.cosines[0] == pytest.approx(1, abs=1e-5)
    assert found.spearman == spearman(found.cosines, [5, 0, 4])


def test_files_of_pairs(tmp_path):
    path = tmp_path / "2015.a.tsv"
    path.write_text('1.5\ta "b\tc\n\tno\tscore\n')
    (tmp_path / "2015.b.tsv").write_text("4\td\te\n")
    (tmp_path / "SICK.txt").write_text("x")
    assert read_pairs(tmp_path) == [Pair('a "b', "c", 1.5), Pair("d", "e", 4.0)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a\tb\n", "line 1: not score TAB"),
        ("1\ta\tb\nx\ta\tb\n", "line 2: 'x' is no score"),
        ("\ta\tb\n", "no scored pairs"),
    ],
)
def test_broken_files_say_why(tmp_path, text, why):
    (tmp_path / "2015.a.tsv").write_text(text)
    with pytest.raises(InputError, match=why):
        read_pairs(tmp_path)


def test_missing_files_and_wrong_sizes_say_why(tmp_path, model):
    with pytest.raises(InputError, match="has no files"):
        read_pairs(tmp_path / "nothing")
    with pytest.raises(InputError, match="two pairs or more"):
        similarity(model, TOKENIZER, [Pair("a", "b", 1.0)])
    with pytest.raises(OptionError, match="max_length=0"):
        embed(model, TOKENIZER, ["a"], max_length=0, batch_size=1)
