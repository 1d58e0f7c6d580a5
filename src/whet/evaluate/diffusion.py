"""Masked diffusion models under test: bounds for likelihoods, any decoder for texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.errors import InputError, OptionError
from whet.evaluate.encoding import Codec, TokenPair, check_request, chunk_windows
from whet.evaluate.likelihood import Estimator, check_estimator, masked_likelihoods, sum_windows
from whet.evaluate.model import Generation, GenerationRequest, Likelihood, LikelihoodRequest
from whet.models.denoiser import BLANK, Denoiser


@dataclass(frozen=True)
class Decoded:
    """A canvas a decoder has filled. tokens: all that it wrote behind the prompt.

    forwards: model calls the canvas took part in.
    """

    tokens: Sequence[int]
    forwards: float | None = None


# Fills a canvas of `max_new_tokens` behind each prompt and gives (place, canvas) as they are
# done. Stop strings are not its business; noise is named by `request.request`.
Decode = Callable[[Sequence[GenerationRequest]], Iterator[tuple[int, Decoded]]]


class DiffusionModel:
    """An `EvalModel` around a `Denoiser` or a model it can be read off.

    decode: writes texts (None: likelihoods only). samples, estimator, cfg_scale: see
    `whet.evaluate.likelihood`. batch_size: rows per forward. Likelihoods are bounds, `greedy` is
    not known. Texts get no BOS unless the tokenizer gives it or the model is shifted and nothing
    else comes first.
    """

    bound = True

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        decode: Decode | None = None,
        samples: int = 128,
        batch_size: int = 32,
        seed: int = 0,
        estimator: Estimator = "stratified",
        cfg_scale: float = 0.0,
    ) -> None:
        check_estimator(estimator, samples)
        if batch_size < 1:
            raise OptionError(f"batch_size={batch_size} must be at least 1")
        if not 0 <= cfg_scale < float("inf"):
            raise OptionError(f"cfg_scale={cfg_scale:g} must be 0 (off) or more")
        self.denoiser = Denoiser.of(model, tokenizer)
        self.codec = Codec.of(tokenizer, self.denoiser.end_ids)
        self.decode = decode
        self.samples = samples
        self.batch_size = batch_size
        self.seed = seed
        self.estimator: Estimator = estimator
        self.cfg_scale = cfg_scale
        self._name = name

    @property
    def name(self) -> str:
        """As records call it."""
        return self._name

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and text together."""
        return self.denoiser.context_length

    @property
    def fixed_canvas(self) -> bool:
        """A canvas is paid for in full."""
        return True

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, with what the tokenizer puts before every one."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Token ids, with what the tokenizer puts before every text."""
        return self.codec.encode(text)

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Generation]]:
        """(place, text) as the decoder finishes canvases, cut at EOS and stop strings.

        Errors: OptionError without a decoder; those of the decoder.
        """
        if self.decode is None:
            raise OptionError(f"model {self.name} was given no decoder: it cannot write texts")
        for request in requests:
            check_request(request)
        for place, decoded in self.decode(requests):
            written = self.codec.written(decoded.tokens, requests[place].stop)
            yield (
                place,
                Generation(
                    text=written.text,
                    tokens=written.tokens,
                    forwards=decoded.forwards,
                    finish=written.finish,
                ),
            )

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> list[Likelihood]:
        """Bounds in nats; requests of one question share their noise."""
        least = int(self.denoiser.traits.shift)
        return self.score(
            [
                self.codec.pair(r.context, r.continuation, (r.question,), least=least)
                for r in requests
            ]
        )

    def rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        """Bounds for whole texts: windows of half the context, each given the window before it."""
        size = self.denoiser.context_length // 2
        if self.denoiser.block_length is not None:  # so that blocks begin where windows do
            size = max(1, size // self.denoiser.block_length) * self.denoiser.block_length
        before = self.codec.prefix
        if not before and self.denoiser.traits.shift:
            before = (self.codec.first_token(),)
        owners, pairs = [], []
        for place, text in enumerate(texts):
            for i, window in enumerate(chunk_windows(before, self.codec.plain(text), size)):
                # Named by the text itself, so that the order of texts does not matter.
                owners.append(place)
                pairs.append(replace(window, key=("rolling", text, i)))
        return sum_windows(owners, self.score(pairs), len(texts))

    def score(self, pairs: Sequence[TokenPair]) -> list[Likelihood]:
        """Bounds for token ids; contexts are cut on the left where they do not fit.

        Errors: OptionError for a model without masks; InputError for a target that does not fit,
        or holds the mask token or an id the model does not know.
        """
        if self.denoiser.mask_token_id == BLANK:
            raise OptionError(f"model {self.name} has no mask token, and so no likelihood bound")
        least = int(self.denoiser.traits.shift)
        fitted = [pair.cut(self.context_length, least=least) for pair in pairs]
        for pair in fitted:
            self._check(pair)
        return masked_likelihoods(
            self.denoiser,
            fitted,
            samples=self.samples,
            estimator=self.estimator,
            batch_size=self.batch_size,
            seed=self.seed,
            cfg_scale=self.cfg_scale,
        )

    def _check(self, pair: TokenPair) -> None:
        if self.denoiser.mask_token_id in pair.target:
            raise InputError("a continuation holds the mask token, which is never predicted")
        size = self.denoiser.vocab_size
        for token in pair.context + pair.target:
            if token != self.denoiser.mask_token_id and not 0 <= token < size:
                raise InputError(f"token id {token} is unknown: ids go from 0 to {size - 1}")
