"""Three tasks in one language of characters, and a Llama that learns them.

- membership: which one of four letters occurs in a string of eight? One token.
- addition: two numbers of two digits, written out digit by digit with carries, then the sum.
- brackets: the closing brackets of a beginning in three kinds.

The first is answered at once, as multiple choice is; the others take many tokens, each of which
must be right. Training, validation and test problems differ by a hash of their prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from whet import rng as rng_
from whet.ar.causal import CausalTraining
from whet.data.mixture import ProblemMixture, Source
from whet.evaluate.autoregressive import AutoregressiveModel
from whet.evaluate.model import GenerationRequest
from whet.fit import FitSettings, fit
from whet.zoo.recipe import Recipe
from whet.zoo.tokenizer import character_tokenizer
from whet.zoo.training import Training

Split = Literal["train", "validation", "test"]
CHOICE, WRITTEN = ("membership",), ("addition", "brackets")
TASKS = CHOICE + WRITTEN
CHANCE: Mapping[str, float] = {"membership": 0.25, "addition": 0.0, "brackets": 0.0}

_CLOSING = {"(": ")", "[": "]", "{": "}"}
_LETTERS = "abcdefghijklmnop"
_LONGEST = 24
_SHARES = {"membership": 2.0, "addition": 1.0, "brackets": 1.0}  # one token a problem against many


def membership(rng: np.random.Generator) -> tuple[str, str]:
    """`mabcadkac?ocfp=` -> c. The other three letters do not occur."""
    text = rng.choice(list(_LETTERS), 8).tolist()
    right = str(rng.choice(sorted(set(text))))
    wrong = rng.permutation(sorted(set(_LETTERS) - set(text)))[:3].tolist()
    choices = rng.permutation([right, *wrong]).tolist()
    return f"m{''.join(text)}?{''.join(choices)}=", right


def addition(rng: np.random.Generator) -> tuple[str, str]:
    """`a47+85=` -> 7+5=12;4+8+1=13;132."""
    a, b = (int(x) for x in rng.integers(10, 100, 2))
    ones = a % 10 + b % 10
    carry = ones // 10
    tens = a // 10 + b // 10 + carry
    work = f"{a % 10}+{b % 10}={ones};{a // 10}+{b // 10}+{carry}={tens};"
    return f"a{a}+{b}=", f"{work}{a + b}"


def brackets(rng: np.random.Generator) -> tuple[str, str]:
    """`b([]{(=` -> )}). Three to six are open at the end."""
    while True:
        text, owed = "", ""
        for _ in range(10):
            if owed and rng.random() < 0.35:
                text, owed = text + owed[0], owed[1:]
            else:
                opening = "([{"[int(rng.integers(3))]
                text, owed = text + opening, _CLOSING[opening] + owed
        if 3 <= len(owed) <= 6:
            return f"b{text}=", owed


_DRAW: Mapping[str, Source] = {
    "membership": membership,
    "addition": addition,
    "brackets": brackets,
}


def split_of(prompt: str) -> Split:
    """Where a problem belongs: an eighth each for validation and test."""
    place = rng_.key_bits(0, "three-tasks", prompt, bits=64) % 8
    return "test" if place == 0 else "validation" if place == 1 else "train"


def draw(task: str, split: Split) -> Source:
    """Problems of one split, from a generator."""

    def source(rng: np.random.Generator) -> tuple[str, str]:
        while True:
            prompt, answer = _DRAW[task](rng)
            if split_of(prompt) == split:
                return prompt, answer

    return source


def problems(task: str, split: Split, count: int, *, seed: int) -> list[tuple[str, str]]:
    """Different (prompt, answer) pairs."""
    rng, source = rng_.keyed(seed, "problems", task, split), draw(task, split)
    found: dict[str, str] = {}
    while len(found) < count:
        prompt, answer = source(rng)
        found.setdefault(prompt, answer)
    return list(found.items())


@dataclass(frozen=True, kw_only=True)
class ThreeTasks:
    """A model and its training. The learning rate falls as a half cosine; weights are averaged."""

    layers: int = 8
    width: int = 128
    intermediate: int = 344
    steps: int = 1500
    batch_size: int = 32
    learning_rate: float = 2e-3
    seed: int = 0

    def model(self) -> Any:
        """A freshly initialised one."""
        with torch.random.fork_rng([]):
            torch.manual_seed(rng_.key_bits(self.seed, "init", bits=64) >> 1)
            return LlamaForCausalLM(
                LlamaConfig(
                    hidden_size=self.width,
                    intermediate_size=self.intermediate,
                    num_hidden_layers=self.layers,
                    num_attention_heads=4,
                    num_key_value_heads=4,
                    vocab_size=104,
                    max_position_embeddings=64,
                    tie_word_embeddings=True,
                    bos_token_id=None,
                    eos_token_id=0,
                    pad_token_id=0,
                )
            )

    def trained(self, run: Path) -> tuple[Any, Any]:
        """Train, or go on from the run's checkpoint; the averaged model and its tokenizer."""
        tokenizer = character_tokenizer()
        training = _Training(self, self.model(), tokenizer)
        identity = {"three-tasks": self.__dict__}
        fit(training, training.recipe.fit, run=run, identity=identity, label="three tasks")
        average = training.players["model"].ema
        assert average is not None
        with average.swapped_in(training.model):
            return copy.deepcopy(training.model).eval(), tokenizer


class _Training(CausalTraining):
    """Next-token training on the mixture of tasks."""

    def __init__(self, settings: ThreeTasks, model: Any, tokenizer: Any) -> None:
        recipe = Recipe(
            method=self.method,
            fit=FitSettings(
                steps=settings.steps,
                learning_rate=settings.learning_rate,
                warmup=settings.steps // 15,
                weight_decay=0.01,
                ema=0.99,
                seed=settings.seed,
            ),
        )
        Training.__init__(self, recipe, model, tokenizer)
        self.mixture = ProblemMixture(
            tokenizer,
            {task: draw(task, "train") for task in TASKS},
            weights=_SHARES,
            gen_lengths=None,
            batch_size=settings.batch_size,
            groups=3,
            seed=settings.seed,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


@dataclass(frozen=True)
class Answers:
    """Of one model to one task's problems. repeated: share of its 4-grams that came before in the
    same text; ended: whether a text came to its end."""

    right: np.ndarray[Any, np.dtype[np.float64]]
    repeated: float
    ended: float


def ask(model: Any, tokenizer: Any, asked: Sequence[tuple[str, str]]) -> Answers:
    """Greedy answers; right where what is behind the last semicolon is."""
    under_test = AutoregressiveModel(model, tokenizer, name="model", batch_size=256)
    requests = [GenerationRequest(prompt=p, max_new_tokens=_LONGEST) for p, _ in asked]
    texts, ended = [""] * len(asked), 0
    for place, found in under_test.generate(requests):
        texts[place], ended = found.text, ended + (found.finish == "stop")
    right = [
        float(text.rpartition(";")[2] == answer.rpartition(";")[2])
        for text, (_, answer) in zip(texts, asked, strict=True)
    ]
    return Answers(np.array(right), repetition(texts), ended / len(asked))


def repetition(texts: Sequence[str], n: int = 4) -> float:
    """Share of n-grams that came before in the same text, over all texts."""
    grams = [[text[i : i + n] for i in range(len(text) - n + 1)] for text in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(own)) for own in grams) / total if total else 0.0


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text."""
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return found
