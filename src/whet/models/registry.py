"""The model classes whet brings, and their registration with transformers' Auto factories."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def model_classes() -> dict[str, tuple[Any, Any]]:
    """model_type -> (configuration class, model class)."""
    from whet.models.dream import DreamConfig, DreamModel
    from whet.models.llada import LLaDAConfig, LLaDAModelLM
    from whet.models.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM
    from whet.models.sdar import SDARConfig, SDARForCausalLM

    return {
        "llada": (LLaDAConfig, LLaDAModelLM),
        "Dream": (DreamConfig, DreamModel),
        "sdar": (SDARConfig, SDARForCausalLM),
        "llada2_moe": (LLaDA2MoeConfig, LLaDA2MoeModelLM),
    }


@functools.cache
def loadable_classes() -> dict[str, tuple[Any, Any]]:
    """What `whet.load` reads: whet's own classes, and those that transformers has itself."""
    from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

    gemma = (DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion)
    return {**model_classes(), "diffusion_gemma": gemma}


@functools.cache
def register() -> None:
    """Make AutoConfig, AutoModel, AutoModelForMaskedLM, …ForCausalLM and AutoTokenizer know them.

    Safe to call often. The Auto classes then load our classes whatever a checkpoint's `auto_map`
    says. AutoModelForCausalLM is included because the published checkpoints name it.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoTokenizer,
    )

    from whet.models.dream import DreamConfig, DreamTokenizerFast

    for model_type, (config_class, model_class) in model_classes().items():
        AutoConfig.register(model_type, config_class, exist_ok=True)
        for factory in (AutoModel, AutoModelForMaskedLM, AutoModelForCausalLM):
            factory.register(config_class, model_class, exist_ok=True)
    AutoTokenizer.register(DreamConfig, fast_tokenizer_class=DreamTokenizerFast, exist_ok=True)
