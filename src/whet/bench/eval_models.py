"""The model under test by name: autoregressive, diffusion, or behind an endpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from whet.dlm.decoders import decoder_options
from whet.dlm.options import DecodeOptions
from whet.dlm.texts import TextRequest, stream_texts
from whet.errors import OptionError
from whet.evaluate.diffusion import Decode, Decoded, DiffusionModel
from whet.evaluate.likelihood import Estimator
from whet.evaluate.model import EvalModel, GenerationRequest
from whet.models.registry import is_autoregressive

DEFAULT_DECODER = "low-confidence"


def eval_model(
    source: str,
    *,
    decoder: str | DecodeOptions | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    dtype: Any = "auto",
    seed: int = 0,
    samples: int = 128,
    estimator: Estimator = "stratified",
    cfg_scale: float = 0.0,
) -> EvalModel:
    """Load a zoo name, a directory or a hub name as an `EvalModel`.

    decoder: of diffusion models (`low-confidence` where none is named). samples, estimator,
    cfg_scale: of their Monte-Carlo likelihoods. seed: of all noise.
    Errors: those of `whet.load` and of decoders; OptionError for a decoder given to an
    autoregressive model.
    """
    import whet

    model, tokenizer = whet.load(source, dtype=dtype, device=device)
    return wrap_model(
        model,
        tokenizer,
        name=source,
        decoder=decoder,
        batch_size=batch_size,
        seed=seed,
        samples=samples,
        estimator=estimator,
        cfg_scale=cfg_scale,
    )


def wrap_model(
    model: Any,
    tokenizer: Any,
    *,
    name: str,
    decoder: str | DecodeOptions | None = None,
    batch_size: int = 32,
    seed: int = 0,
    samples: int = 128,
    estimator: Estimator = "stratified",
    cfg_scale: float = 0.0,
) -> EvalModel:
    """A loaded model as an `EvalModel`; the options are those of `eval_model`."""
    if is_autoregressive(model):
        from whet.evaluate.autoregressive import AutoregressiveModel

        if decoder is not None:
            raise OptionError(
                f"{name} is autoregressive: decoders fill the canvases of diffusion models, "
                "leave --decoder off"
            )
        return AutoregressiveModel(model, tokenizer, name=name, batch_size=batch_size, seed=seed)
    if decoder is None:
        decoder = DEFAULT_DECODER
    options = decoder
    if isinstance(options, str):
        options = decoder_options(options, {"seed": str(seed)} if "seed=" not in options else {})
    return DiffusionModel(
        model,
        tokenizer,
        name=name,
        decode=decode_with(model, tokenizer, options, batch_size=batch_size),
        samples=samples,
        batch_size=batch_size,
        seed=seed,
        estimator=estimator,
        cfg_scale=cfg_scale,
    )


def decode_with(model: Any, tokenizer: Any, options: DecodeOptions, *, batch_size: int) -> Decode:
    """A decoder as the callable a `DiffusionModel` asks for: first done, first out.

    Requests with a temperature of their own are decoded with it, the others as `options` say.
    """

    def decode(requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Decoded]]:
        groups: dict[float, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(request.temperature, []).append(place)
        for temperature, places in groups.items():
            own = options
            if temperature:
                own = dataclasses.replace(options, temperature=temperature)
            asked = (
                TextRequest(requests[i].prompt, requests[i].max_new_tokens, requests[i].request)
                for i in places
            )
            for index, done in stream_texts(
                model, tokenizer, asked, options=own, batch_size=batch_size
            ):
                yield places[index], Decoded(done.tokens, float(done.answer_steps))

    return decode
