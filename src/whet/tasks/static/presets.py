"""Generation settings under which the papers of diffusion language models report scores.

Two scores of one model are comparable only under the same canvas, blocks, steps, end-of-text rule
and temperature: LLaDA-8B-Instruct has 69.4 on GSM8K in one block of 512 and 78.6 in blocks of 8.

Sources: LLaDA, arXiv 2502.09992, and the evaluation notes of ML-GSAI/LLaDA; LLaDA 1.5, arXiv
2505.19223, same notes; Dream 7B, arXiv 2508.15487, and the evaluation scripts of DreamLM/Dream.
`reported` is the score those give, in percent, None where they give none for exactly these
settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from whet.errors import OptionError, nearest
from whet.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How texts are generated for one model family on one task.

    task: id of the benchmark. gen_length: canvas in tokens. decoder: id of the rule; settings: its
    options (steps, block_length, temperature, eos, ...). num_fewshot: solved examples. chat:
    whether the prompt goes through the model's chat template. reported: score in percent.
    """

    task: str
    gen_length: int
    decoder: str = "low-confidence"
    settings: Mapping[str, Any] = field(default_factory=dict)
    num_fewshot: int = 0
    chat: bool = False
    reported: float | None = None

    @property
    def chain(self) -> str:
        """The decoder with its settings, in the naming grammar."""
        return str(Spec(self.decoder, None, {k: str(v) for k, v in self.settings.items()}))


def _llada_base(task: str, gen_length: int, shots: int, reported: float) -> Preset:
    """One block, one step per token, greedy, no guidance."""
    settings = {"steps": gen_length, "block_length": gen_length, "temperature": 0.0}
    return Preset(
        task=task,
        gen_length=gen_length,
        settings=settings,
        num_fewshot=shots,
        reported=reported,
    )


def _llada_chat(
    task: str, gen_length: int, block_length: int, reported: float, eos: str = "none"
) -> Preset:
    """As many steps as tokens, blocks left to right, greedy."""
    settings: dict[str, Any] = {
        "steps": gen_length,
        "block_length": block_length,
        "temperature": 0.0,
        "eos": eos,
    }
    if eos == "defer":
        settings["official"] = True
    return Preset(task=task, gen_length=gen_length, settings=settings, chat=True, reported=reported)


def _dream(
    task: str, gen_length: int, shots: int, temperature: float, top_p: float, *, chat: bool = False
) -> Preset:
    """As many steps as tokens, positions by entropy, one block."""
    settings = {
        "steps": gen_length,
        "alg": "entropy",
        "temperature": temperature,
        "top_p": top_p,
        "official": True,
    }
    return Preset(
        task=task,
        gen_length=gen_length,
        decoder="dream",
        settings=settings,
        num_fewshot=shots,
        chat=chat,
    )


# canvas -> score of LLaDA-8B-Base per task, with the harness's own number of examples
_LLADA_BASE = {
    "gsm8k": (5, {1024: 70.3, 512: 70.8, 256: 70.0}),
    "minerva_math": (4, {1024: 31.4, 512: 30.9, 256: 30.3}),
    "humaneval": (0, {1024: 35.4, 512: 32.9, 256: 32.9}),
    "mbpp": (3, {1024: 40.0, 512: 39.2, 256: 40.2}),
}

PRESETS: dict[str, Preset] = {
    **{
        f"llada-8b-base:{task}-{canvas}": _llada_base(task, canvas, shots, score)
        for task, (shots, scores) in _LLADA_BASE.items()
        for canvas, score in scores.items()
    },
    "llada-8b-instruct:gsm8k": _llada_chat("gsm8k", 512, 512, 69.4),
    "llada-8b-instruct:gsm8k-semi-ar": _llada_chat("gsm8k", 256, 8, 78.6),
    "llada-8b-instruct:minerva_math": _llada_chat("minerva_math", 512, 512, 31.9),
    "llada-8b-instruct:minerva_math-semi-ar": _llada_chat("minerva_math", 512, 64, 42.2),
    "llada-8b-instruct:humaneval": _llada_chat("humaneval", 512, 512, 49.4, "suppress"),
    "llada-8b-instruct:mbpp": _llada_chat("mbpp", 256, 256, 41.0, "defer"),
    "llada-1.5:gsm8k": _llada_chat("gsm8k", 256, 16, 83.8),
    "llada-1.5:minerva_math": _llada_chat("minerva_math", 1024, 128, 42.6),
    "llada-1.5:humaneval": _llada_chat("humaneval", 512, 32, 52.4),
    "llada-1.5:mbpp": _llada_chat("mbpp", 512, 32, 42.8),
    "dream-7b-base:humaneval": _dream("humaneval", 512, 0, 0.2, 0.95),
    "dream-7b-base:gsm8k_cot": _dream("gsm8k_cot", 256, 8, 0.0, 1.0),
    "dream-7b-base:mbpp": _dream("mbpp", 512, 3, 0.2, 0.95),
    "dream-7b-base:minerva_math": _dream("minerva_math", 512, 4, 0.0, 1.0),
    "dream-7b-instruct:gsm8k_cot": _dream("gsm8k_cot", 256, 0, 0.1, 0.9, chat=True),
    "dream-7b-instruct:minerva_math": _dream("minerva_math", 512, 0, 0.1, 0.9, chat=True),
    "dream-7b-instruct:humaneval": _dream("humaneval", 768, 0, 0.1, 0.9, chat=True),
    "dream-7b-instruct:mbpp": _dream("mbpp", 1024, 0, 0.1, 0.9, chat=True),
}


def get_preset(name: str) -> Preset:
    """A preset by name, as `llada-8b-instruct:gsm8k-semi-ar`. Errors: OptionError, nearest name."""
    if name not in PRESETS:
        raise OptionError(f"unknown preset {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]
