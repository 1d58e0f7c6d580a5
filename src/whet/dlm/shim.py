"""Decoders through transformers' front door: `model.generate(ids, custom_generate=soar, ...)`.

One shim serves every decoder: it is generated from the decoder's options. transformers finds a
callable's own options by its signature, so they must be named parameters there. The host's names
are mapped onto ours: `max_new_tokens` is the canvas, `do_sample`/`temperature` the temperature,
`guidance_scale` the guidance (l_u + g (l_c - l_u), hence cfg_scale = g - 1).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from whet.dlm.options import DecodeOptions
from whet.dlm.trace import Trace
from whet.errors import OptionError

# transformers takes these for itself before a callable could see them.
_HOST = ("temperature", "top_p", "top_k")
_DEFAULT_TOP_K = 50  # transformers' own default, which nobody asked for
# What transformers builds from settings that decoders honour (or that are its silent defaults).
_PROCESSORS = (
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
)
_CRITERIA = ("MaxLengthCriteria", "EosTokenCriteria")


@dataclass
class DenoiseOutput(ModelOutput):  # type: ignore[misc]
    """What `return_dict_in_generate=True` gives: sequences [P, L] and the trace."""

    sequences: Tensor | None = None
    trace: Trace | None = None


def custom_generate(options_class: type[DecodeOptions], name: str) -> Callable[..., Any]:
    """The `custom_generate` callable of a decoder.

    Its keyword arguments are the fields of `options_class` (temperature, top_p and top_k excepted,
    which are transformers' own), `on_commit` and `requests`.
    """
    own = [f for f in dataclasses.fields(options_class) if f.name not in _HOST]

    def decode(
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        generation_config: Any = None,
        **given: Any,
    ) -> Tensor | DenoiseOutput:
        from whet.dlm.canvas import denoise
        from whet.dlm.streamer import CommittedText
        from whet.models.denoiser import Denoiser

        settings = {f.name: given.pop(f.name) for f in own if f.name in given}
        settings |= _host_settings(generation_config, settings)
        # `MaskedGenerationMixin.generate` hands these over; transformers would not.
        streamer = given.pop("streamer", None)
        if "top_k" in given:
            settings["top_k"] = given.pop("top_k") or None
        _refuse(logits_processor, stopping_criteria, generation_config)
        options = options_class(**settings)
        denoiser = Denoiser.of(model)
        on_commit = given.pop("on_commit", None)
        if streamer is not None:
            on_commit = _both(
                on_commit,
                CommittedText(streamer, end_ids=denoiser.end_ids, revises=options.revises),
            )
        mask = given.pop("attention_mask", None)
        for row, ids in enumerate(input_ids):
            kept = ids if mask is None else ids[mask[row].bool().to(ids.device)]
            denoiser.check_prompt(kept, f"prompt {row + 1}")
        length = generation_config.max_length - input_ids.shape[1]
        canvas = append_masks(input_ids, length, denoiser.mask_token_id)
        if mask is not None:
            mask = append_masks(mask.long(), length, 1)
        tokens, trace = denoise(
            denoiser,
            canvas,
            mask,
            options=options,
            start=input_ids.shape[1],
            on_commit=on_commit,
            requests=given.pop("requests", None),
        )
        if generation_config.return_dict_in_generate:
            return DenoiseOutput(sequences=tokens, trace=trace)
        return tokens

    decode.__name__ = decode.__qualname__ = name
    decode.__doc__ = (
        f"`model.generate(ids, custom_generate={name}, ...)`; options: "
        f"`{options_class.__module__}.{options_class.__name__}`."
    )
    decode.__signature__ = _signature(own)  # type: ignore[attr-defined]
    decode.options_class = options_class  # type: ignore[attr-defined]
    return decode


def append_masks(ids: Tensor, length: int, fill: int) -> Tensor:
    """[P, L] -> [P, L + length], the new columns holding `fill`."""
    return torch.cat((ids, ids.new_full((ids.shape[0], length), fill)), -1)


def _both(first: Any, second: Any) -> Any:
    """One callback that calls both, in order."""
    if first is None:
        return second

    def on_commit(step: int, rows: Any) -> None:
        first(step, rows)
        second(step, rows)

    return on_commit


def _signature(own: list[Any]) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ("model", "input_ids", "logits_processor", "stopping_criteria", "generation_config")
    parameters = [inspect.Parameter(n, kind) for n in names]
    only = inspect.Parameter.KEYWORD_ONLY
    parameters += [inspect.Parameter(f.name, only, default=f.default) for f in own]
    parameters += [inspect.Parameter(n, only, default=None) for n in ("on_commit", "requests")]
    parameters.append(inspect.Parameter("model_kwargs", inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _host_settings(config: Any, given: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if config.do_sample:
        out["temperature"] = config.temperature if config.temperature is not None else 1.0
        if config.top_p is not None:
            out["top_p"] = config.top_p
        if config.top_k not in (None, 0, _DEFAULT_TOP_K):
            out["top_k"] = config.top_k
    guidance = config.guidance_scale
    if guidance is not None and guidance != 1:
        if "cfg_scale" in given:
            raise OptionError("give guidance_scale or cfg_scale, not both")
        out["cfg_scale"] = guidance - 1.0
    return out


def _refuse(logits_processor: Any, stopping_criteria: Any, config: Any) -> None:
    for name in ("num_beams", "num_return_sequences", "repetition_penalty", "typical_p"):
        value = getattr(config, name, None)
        if value not in (None, 1, 1.0):
            raise OptionError(f"{name}={value} is not supported by whet's diffusion decoders")
    for kind, given, known in (
        ("logits processor", logits_processor, _PROCESSORS),
        ("stopping criterion", stopping_criteria, _CRITERIA),
    ):
        foreign = [type(p).__name__ for p in (given or []) if type(p).__name__ not in known]
        if foreign:
            raise OptionError(f"{kind} {foreign[0]} is not supported: decoders work on canvases")
