"""Semantic textual similarity: do embeddings of two sentences agree as people say they do?

SemEval's protocol (Agirre et al., 2015, task 2): Spearman's rank correlation between the cosine of
two embeddings and the scores that people gave, over all pairs of all domains together, as
sentence-transformers and MTEB report it. Embeddings are the means of the last hidden states over
the tokens of a sentence, as models of the all-MiniLM kind were trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whet.errors import InputError, OptionError
from whet.rng import keyed

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two sentences, and how alike people found them (0 to 5)."""

    first: str
    second: str
    score: float


@dataclass(frozen=True)
class Similarity:
    """spearman: over all pairs. cosines: of every pair, in order. truncated: sentences cut off."""

    spearman: float
    cosines: Floats
    truncated: int


def read_pairs(folder: Path, pattern: str = "2015.*.tsv") -> list[Pair]:
    """The scored pairs of a folder's files: lines `score TAB sentence TAB sentence`.

    Lines without a score are left out. Errors: InputError for a folder without such files, a line
    of another form, or files without any score.
    """
    paths = sorted(folder.glob(pattern)) if folder.is_dir() else []
    if not paths:
        raise InputError(f"{folder} has no files {pattern}: give the folder of the STS files")
    found = [pair for path in paths for pair in _scored(path)]
    if len(found) < 2:
        raise InputError(f"{folder}: the files {pattern} have no scored pairs")
    return found


def _scored(path: Path) -> Iterator[Pair]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable UTF-8 text ({error})") from error
    for number, line in enumerate(lines, 1):
        parts = line.split("\t")
        if len(parts) < 3:
            raise InputError(f"{path}, line {number}: not score TAB sentence TAB sentence")
        if not parts[0].strip():
            continue
        try:
            score = float(parts[0])
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {parts[0]!r} is no score") from error
        yield Pair(parts[1], parts[2], score)


def similarity(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    *,
    max_length: int = 256,
    batch_size: int = 64,
) -> Similarity:
    """How well an encoder's embeddings agree with people.

    model: gives last hidden states first. max_length: tokens of a sentence; all-MiniLM's is 256.
    Errors: OptionError for sizes below 1; InputError for fewer than two pairs.
    """
    if len(pairs) < 2:
        raise InputError(f"a correlation needs two pairs or more, got {len(pairs)}")
    texts = list(dict.fromkeys(text for pair in pairs for text in (pair.first, pair.second)))
    places = {text: place for place, text in enumerate(texts)}
    vectors, truncated = embed(
        model, tokenizer, texts, max_length=max_length, batch_size=batch_size
    )
    first = vectors[[places[pair.first] for pair in pairs]]
    second = vectors[[places[pair.second] for pair in pairs]]
    cosines = (first * second).sum(-1).double().numpy()
    return Similarity(spearman(cosines, [pair.score for pair in pairs]), cosines, truncated)


@torch.inference_mode()
def embed(
    model: Any, tokenizer: Any, texts: Sequence[str], *, max_length: int, batch_size: int
) -> tuple[Tensor, int]:
    """Embeddings [N, D] of length 1, in float32, and how many texts were cut off.

    Means over a text's tokens, special ones included. Errors: OptionError for sizes below 1.
    """
    for name, value in (("max_length", max_length), ("batch_size", batch_size)):
        if value < 1:
            raise OptionError(f"{name}={value} must be at least 1")
    rows = tokenizer(list(texts), padding=False, verbose=False)["input_ids"]
    cut = sum(len(row) > max_length for row in rows)
    rows = tokenizer(
        list(texts), truncation=True, max_length=max_length, padding=False, verbose=False
    )["input_ids"]
    # Like lengths together, which saves padding.
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    pad = tokenizer.pad_token_id or 0
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for low in range(0, len(order), batch_size):
        part = order[low : low + batch_size]
        width = max(1, *(len(rows[i]) for i in part))
        tokens, mask = torch.full((len(part), width), pad), torch.zeros(len(part), width).long()
        for row, i in enumerate(part):
            tokens[row, : len(rows[i])] = torch.tensor(rows[i])
            mask[row, : len(rows[i])] = 1
        device = next(model.parameters()).device
        states = model(input_ids=tokens.to(device), attention_mask=mask.to(device))[0].float().cpu()
        weight = mask[..., None].float()
        means = (states * weight).sum(1) / weight.sum(1).clamp(min=1)
        for row, i in enumerate(part):
            found[i] = means[row]
    return torch.nn.functional.normalize(torch.stack(found), dim=-1), cut


def spearman(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float:
    """Spearman's rank correlation of a and b, [n] each; ties share their mean rank.

    0 where all of one are equal. Errors: InputError for unequal lengths, fewer than two, or a
    value that is not finite.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise InputError(f"a correlation needs two equal lists, got {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a correlation needs finite numbers")
    return _pearson(_ranks(x), _ranks(y))


def spearman_difference(
    a: Floats, b: Floats, scores: Sequence[float], *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """(value, low, high) at 95 % of spearman(a, scores) - spearman(b, scores), [n] each.

    A percentile bootstrap over pairs, the same ones for both. Errors: as `spearman`.
    """
    gold = np.asarray(scores, dtype=np.float64)
    value = spearman(a, gold) - spearman(b, gold)
    rng = keyed(seed, "spearman")
    drawn = []
    for _ in range(resamples):
        rows = rng.integers(0, len(gold), len(gold))
        ranks = _ranks(gold[rows])
        drawn.append(_pearson(_ranks(a[rows]), ranks) - _pearson(_ranks(b[rows]), ranks))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return value, float(low), float(high)


def _ranks(values: Floats) -> Floats:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]


def _pearson(x: Floats, y: Floats) -> float:
    dx, dy = x - x.mean(), y - y.mean()
    size = float(np.sqrt((dx @ dx) * (dy @ dy)))
    return float(dx @ dy) / size if size else 0.0
