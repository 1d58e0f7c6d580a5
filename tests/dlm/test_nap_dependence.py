"""SeqDep of path sets, with a scorer whose values are known."""

import math

import pytest

from whet.dlm.nap.data import PathSet
from whet.dlm.nap.dependence import path_dependence
from whet.dlm.order import sequential_dependence
from whet.errors import OptionError
from whet.evaluate.autoregressive import AutoregressiveModel
from whet.evaluate.model import Likelihood
from whet.zoo import load
from whet.zoo.tokenizer import character_tokenizer

TOKENIZER = character_tokenizer()


def one(*paths):
    return PathSet(0, "t", "ab=", list(paths), [True] * len(paths), "1")


def test_paths_under_their_true_model():
    """Letters are drawn evenly from ten; then a copying model, which has read the first path."""

    def independent(pairs):
        return [Likelihood(value=-len(p.target) * math.log(10)) for p in pairs]

    def copies(pairs):
        return [
            Likelihood(value=0.0 if p.context[-2:] == p.target else -2 * math.log(10))
            for p in pairs
        ]

    sets = [one("xy", "xy", "xy"), one("zz", "zz", "zz")]
    assert path_dependence(independent, TOKENIZER, sets) == pytest.approx([0, 0])
    assert path_dependence(copies, TOKENIZER, sets) == pytest.approx([2 * math.log(10)] * 2)


def test_a_model_scores_as_its_own_function_does():
    model, tokenizer = load("tiny-ar")
    scorer = AutoregressiveModel(model, tokenizer, name="tiny-ar", batch_size=4)
    sets = [one("12", "345", "6"), one("7", "89")]
    from whet.evaluate.encoding import TokenPair

    def log_prob(context, target):
        return scorer.score([TokenPair(tuple(context), tuple(target))])[0].value

    expected = []
    for s in sets:
        prompt, *paths = tokenizer([s.prompt, *s.paths], add_special_tokens=False)["input_ids"]
        expected.append(sequential_dependence(log_prob, prompt, paths))
    assert path_dependence(scorer.score, tokenizer, sets) == pytest.approx(expected, abs=1e-4)


def test_a_single_path_depends_on_nothing():
    with pytest.raises(OptionError, match=r"1 segment\(s\)"):
        path_dependence(lambda pairs: [], TOKENIZER, [one("x")])
