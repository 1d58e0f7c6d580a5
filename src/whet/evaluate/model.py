"""The model under test: one shape for autoregressive, diffusion and remote models.

Requests and results are texts, so that a model behind an endpoint has the same shape as one in
memory; tokens are the evaluated model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Finish = Literal["stop", "length", "failed"]


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """A text to continue.

    max_new_tokens: tokens at most (diffusion models: the canvas). stop: the text ends before the
    first of these strings. temperature: 0 takes the most likely token. request: names it in the
    noise keys, so that batch equals single.
    """

    prompt: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    request: int = 0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a model wrote: never the prompt, never a stop string.

    tokens: useful tokens, the end-of-text token included. forwards: model calls it took part in,
    None where that cannot be known. finish: "stop" at a stop string or end of text, "length" where
    the tokens ran out first, "failed" where there is no text (`error` says why).
    """

    text: str
    tokens: int
    forwards: float | None = None
    finish: Finish = "stop"
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class LikelihoodRequest:
    """How likely `continuation` is after `context`.

    question: choices of one question share it, and with it the noise of Monte-Carlo estimates.
    """

    context: str
    continuation: str
    question: int = 0


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """A log-likelihood in nats. error: its standard error (0 where it is exact).

    greedy: whether the continuation is what greedy decoding gives; None where that is not known.
    tokens: tokens it is the sum over.
    """

    value: float
    error: float = 0.0
    greedy: bool | None = None
    tokens: int = 0


class EvalModel(Protocol):
    """A model under test. Results keep the order of the requests, whatever is batched."""

    @property
    def name(self) -> str:
        """As records call it."""

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and text together."""

    @property
    def fixed_canvas(self) -> bool:
        """Whether `max_new_tokens` is paid for in full, as by diffusion models."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, by the model's own tokenizer where there is one."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Generation]]:
        """(place in `requests`, what was written) as texts are finished.

        Errors: InputError for a prompt that cannot be used. A remote model that fails yields
        "failed" instead.
        """

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> list[Likelihood]:
        """Log-likelihoods in nats. Errors: OptionError where the model has none."""

    def rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        """Log-likelihood of whole texts of any length, window by window."""
