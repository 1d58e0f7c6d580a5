"""Autoregressive models under test: any causal LM of transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from whet.errors import InputError, OptionError
from whet.evaluate.encoding import Codec, TokenPair, batches, check_request, rolling_windows
from whet.evaluate.likelihood import log_probabilities, sum_windows
from whet.evaluate.model import Generation, GenerationRequest, Likelihood, LikelihoodRequest
from whet.layers.sampling import draw
from whet.rng import keyed


class AutoregressiveModel:
    """An `EvalModel` around a causal LM of transformers (in eval mode) and its tokenizer.

    context_length: most tokens the model takes; by default what its configuration says. seed: of
    sampling. A request's text depends on the seed and its own name, not on its batch (up to
    rounding in low precision). The checkpoint's own generation settings, such as a repetition
    penalty, are not applied; its end-of-text tokens are.
    """

    bound = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        batch_size: int = 32,
        seed: int = 0,
        context_length: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size={batch_size} must be at least 1")
        settings = getattr(model, "generation_config", None)
        ends = getattr(settings, "eos_token_id", None)
        ends = list(ends) if isinstance(ends, list | tuple) else [ends]
        self.model = model
        self.codec = Codec.of(tokenizer, [tokenizer.eos_token_id, *ends])
        self.batch_size = batch_size
        self.seed = seed
        self._name = name
        self._context_length = context_length or _context_length(model, tokenizer)
        # Wrappers hide the signature; all logits are computed then.
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def name(self) -> str:
        """As records call it."""
        return self._name

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and text together."""
        return self._context_length

    @property
    def fixed_canvas(self) -> bool:
        """Texts end where they end: unused tokens cost nothing."""
        return False

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, with what the tokenizer puts before every one."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """Token ids, with what the tokenizer puts before every text."""
        return self.codec.encode(text)

    def loglikelihood(self, requests: Sequence[LikelihoodRequest]) -> list[Likelihood]:
        """Exact log-likelihoods in nats.

        Long contexts are cut on the left. Errors: InputError for a continuation that has no tokens
        or more than the model takes.
        """
        return self.score([self.codec.pair(r.context, r.continuation) for r in requests])

    def rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        """Log-likelihoods of whole texts; windows as `encoding.rolling_windows` cuts them.

        What the tokenizer puts before every text, or else BOS or EOS, is given and not scored.
        """
        before = self.codec.prefix or (self.codec.first_token(),)
        owners, pairs = [], []
        for place, text in enumerate(texts):
            for pair in rolling_windows(before, self.codec.plain(text), self.context_length):
                owners.append(place)
                pairs.append(pair)
        return sum_windows(owners, self.score(pairs), len(texts))

    def score(self, pairs: Sequence[TokenPair]) -> list[Likelihood]:
        """Log-likelihoods of token ids. Every context holds a token at least.

        The last target is not fed, so one more token fits than the model takes. Pairs that differ
        in their last target only share a row. Errors: InputError for a target that does not fit.
        """
        shared: dict[tuple[int, ...], list[int]] = {}
        for place, pair in enumerate(pairs):
            fitted = pair.cut(self.context_length + 1, least=1)
            shared.setdefault((fitted.context + fitted.target)[:-1], []).append(place)
        found = [Likelihood(value=0.0)] * len(pairs)
        longest_first = sorted(shared.items(), key=lambda item: -len(item[0]))
        for batch in batches(longest_first, self.batch_size):
            # Targets lie at the end of each row: what comes before all of them needs no logits.
            begins = [
                len(ids) - max(len(pairs[place].target) for place in places)
                for ids, places in batch
            ]
            low = min(begins)
            logits = self._logits([ids for ids, _ in batch], low)
            for row, (ids, places) in enumerate(batch):
                for place in places:
                    target = pairs[place].target
                    mine = logits[row, len(ids) - len(target) - low : len(ids) - low]
                    found[place] = _likelihood(mine, target)
        return found

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Sequence[int]], low: int) -> Tensor:
        """Logits of columns from `low` on, [B, W - low, V]; rows are padded on the right."""
        width = max(map(len, rows))
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        device = self.model.device
        inputs: dict[str, Any] = {"logits_to_keep": width - low} if self._keeps else {}
        logits: Tensor = self.model(
            input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False, **inputs
        ).logits
        return logits[:, -(width - low) :]

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Generation]]:
        """(place, text), batch by batch, longest first. forwards: one per token.

        Errors: InputError for a prompt that does not fit together with `max_new_tokens`;
        OptionError for a length or temperature that cannot be. Both before anything is written.
        """
        prompts = []
        for request in requests:
            check_request(request)
            ids = self.encode(request.prompt) or [self.codec.first_token()]
            if len(ids) + request.max_new_tokens > self.context_length:
                raise InputError(
                    f"prompt of {len(ids)} tokens and max_new_tokens={request.max_new_tokens} "
                    f"exceed the model's context of {self.context_length}"
                )
            prompts.append(ids)
        order = sorted(
            range(len(requests)), key=lambda i: (-requests[i].max_new_tokens, -len(prompts[i]))
        )
        for batch in batches(order, self.batch_size):
            written = self._continue([prompts[i] for i in batch], [requests[i] for i in batch])
            for place, ids in zip(batch, written, strict=True):
                cut = self.codec.written(ids, requests[place].stop)
                yield (
                    place,
                    Generation(
                        text=cut.text, tokens=cut.tokens, forwards=len(ids), finish=cut.finish
                    ),
                )

    @torch.inference_mode()
    def _continue(
        self, prompts: Sequence[Sequence[int]], requests: Sequence[GenerationRequest]
    ) -> list[list[int]]:
        """What follows each prompt, up to the token that ends it."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        width = max(map(len, prompts))
        pad = self.codec.tokenizer.pad_token_id
        tokens = torch.full((len(prompts), width), 0 if pad is None else pad)
        mask = torch.zeros_like(tokens)
        for row, ids in enumerate(prompts):
            tokens[row, width - len(ids) :] = torch.tensor(ids)
            mask[row, width - len(ids) :] = 1
        ended = _Ended(self.codec, requests, width)
        settings = GenerationConfig(
            max_new_tokens=max(r.max_new_tokens for r in requests),
            pad_token_id=0 if pad is None else pad,
            eos_token_id=list(self.codec.end_ids) or None,
            # transformers fills what is left open from the checkpoint's settings.
            min_new_tokens=0,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        out = self.model.generate(
            input_ids=tokens.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_KeyedDraw(requests, self.seed, width)]),
            stopping_criteria=StoppingCriteriaList([ended]),
        )
        return [
            row[width : width + length].tolist()
            for row, length in zip(out.cpu(), ended.lengths, strict=True)
        ]


class _KeyedDraw:
    """A logits processor that leaves rows to be sampled one possible token, the drawn one.

    Greedy decoding then takes it. transformers' own sampling draws for the whole batch at once.
    """

    def __init__(self, requests: Sequence[GenerationRequest], seed: int, width: int) -> None:
        self.width = width
        self.warm = [i for i, r in enumerate(requests) if r.temperature > 0]
        self.temperature = torch.tensor([requests[i].temperature for i in self.warm])
        length = max(r.max_new_tokens for r in requests)
        self.uniform = torch.zeros(len(self.warm), length, dtype=torch.float64)
        for row, i in enumerate(self.warm):
            noise = keyed(seed, "generate", requests[i].request).random(length)
            self.uniform[row] = torch.from_numpy(noise)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self.warm:
            return scores
        rows = torch.tensor(self.warm, device=scores.device)
        heat = self.temperature.to(scores.device)[:, None]
        u = self.uniform[:, input_ids.shape[1] - self.width].to(scores.device)
        chosen = draw(scores[rows] / heat, u)
        scores = scores.clone()
        scores[rows] = -torch.inf
        scores[rows, chosen] = 0.0
        return scores


class _Ended:
    """A stopping criterion row by row: end of text, a stop string, or the row's own length."""

    def __init__(self, codec: Codec, requests: Sequence[GenerationRequest], width: int) -> None:
        self.codec = codec
        self.requests = requests
        self.width = width
        self._lengths: list[int | None] = [None] * len(requests)

    @property
    def lengths(self) -> list[int]:
        """Tokens each row has written when it ended."""
        return [
            r.max_new_tokens if n is None else n
            for r, n in zip(self.requests, self._lengths, strict=True)
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        count = input_ids.shape[1] - self.width
        for row, request in enumerate(self.requests):
            if self._lengths[row] is None:
                ids = input_ids[row, self.width :].tolist()
                if count >= request.max_new_tokens or self.codec.stops(ids, request.stop):
                    self._lengths[row] = count
        done = [n is not None for n in self._lengths]
        return torch.tensor(done, device=input_ids.device)


def _likelihood(logits: Tensor, target: Sequence[int]) -> Likelihood:
    """Of targets from the logits [L, V] that predict them."""
    ids = torch.tensor(target, device=logits.device)
    # In parts, so that no wide copy of all logits is made.
    parts = [
        log_probabilities(logits[low : low + 256], ids[low : low + 256])
        for low in range(0, len(ids), 256)
    ]
    return Likelihood(
        value=float(torch.cat(parts).cpu().double().sum()),
        greedy=bool((logits.argmax(-1) == ids).all()),
        tokens=len(target),
    )


def _context_length(model: Any, tokenizer: Any) -> int:
    """Errors: OptionError where neither configuration nor tokenizer says."""
    config = model.config.get_text_config()
    for length in (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length):
        # Tokenizers that do not know say 10**30.
        if isinstance(length, int) and 0 < length < 10**9:
            return length
    raise OptionError("the model's configuration names no context: give context_length")
