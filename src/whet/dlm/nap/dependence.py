"""How much the paths of a data set lean on each other: SeqDep (NAP, arXiv 2602.23225, section 3).

Near 0, the paths of a problem are independent given the problem, so that nothing is lost by
writing them side by side. The scorer is any autoregressive model, such as
`whet.evaluate.autoregressive.AutoregressiveModel(...).score`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from whet.dlm.nap.data import PathSet
from whet.dlm.order import sequential_dependence
from whet.evaluate.encoding import TokenPair
from whet.evaluate.model import Likelihood

Score = Callable[[Sequence[TokenPair]], Sequence[Likelihood]]


def path_dependence(score: Score, tokenizer: Any, sets: Sequence[PathSet]) -> list[float]:
    """SeqDep of each set's paths, in nats; all pairs go to the scorer in one call.

    Errors: OptionError for a set of fewer than two paths.
    """
    encoded = [
        tokenizer([one.prompt, *one.paths], add_special_tokens=False)["input_ids"] for one in sets
    ]
    asked: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}

    def note(context: Sequence[int], target: Sequence[int]) -> float:
        return asked.setdefault((tuple(context), tuple(target)), 0.0)

    def known(context: Sequence[int], target: Sequence[int]) -> float:
        return asked[tuple(context), tuple(target)]

    for prompt, *paths in encoded:
        sequential_dependence(note, prompt, paths)
    found = score([TokenPair(context, target) for context, target in asked])
    for pair, likelihood in zip(list(asked), found, strict=True):
        asked[pair] = likelihood.value
    return [sequential_dependence(known, prompt, paths) for prompt, *paths in encoded]
