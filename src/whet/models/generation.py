"""The mixin that gives a masked LM transformers' `generate()` front door."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers.generation.utils import GenerationMixin

from whet import catalogue
from whet.errors import OptionError

DEFAULT_DECODER = "low-confidence"


class MaskedGenerationMixin(GenerationMixin):  # type: ignore[misc]
    """`generate()` that denoises a canvas instead of running left to right.

    Without `custom_generate` transformers would run autoregressive nonsense on a masked LM, so
    the default is low-confidence remasking. Any decoder of the catalogue can be passed as
    `custom_generate=`; its options are named arguments of the call.
    """

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # transformers would otherwise build a causal cache before the decoder is called.
        return False

    def generate(
        self,
        inputs: Any = None,
        generation_config: Any = None,
        *,
        custom_generate: Callable[..., Any] | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decode with `custom_generate`: a callable, or the name of a decoder in the catalogue.

        The default is low-confidence remasking. streamer: gets the prompt, then committed text from
        the left as it grows, and drafts if it takes them (one prompt at a time). See transformers
        for the rest. Errors: OptionError for what never reaches a decoder called this way.
        """
        for name, instead in (
            ("assistant_model", "a decoder that takes drafter="),
            ("stop_strings", "the text cut at the end-of-text token"),
        ):
            if kwargs.get(name) is not None:
                raise OptionError(f"{name}= does not work on a masked LM: use {instead}")
        if kwargs.get("num_beams", 1) != 1:
            raise OptionError(
                f"num_beams={kwargs['num_beams']} is for autoregressive models: use "
                "custom_generate=soar with beam_width="
            )
        decoder = custom_generate or DEFAULT_DECODER
        if isinstance(decoder, str):
            decoder = catalogue.resolve(decoder, "generate")
        # transformers hands a callable neither a streamer nor, to tell it from its own default, a
        # top_k: whet's decoders are given them here.
        bound = {n: kwargs.pop(n) for n in ("streamer", "top_k") if kwargs.get(n) is not None}
        if bound and not hasattr(getattr(decoder, "func", decoder), "options_class"):
            raise OptionError(
                f"{next(iter(bound))}= reaches whet's own decoders only, not {decoder!r}"
            )
        if bound:
            decoder = functools.partial(decoder, **bound)
        return super().generate(inputs, generation_config, custom_generate=decoder, **kwargs)
