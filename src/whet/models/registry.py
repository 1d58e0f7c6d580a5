"""The model classes whet brings, and their registration with transformers' Auto factories."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def model_classes() -> dict[str, tuple[Any, Any]]:
    """model_type -> (configuration class, model class)."""
    from whet.models.dream import DreamConfig, DreamModel
    from whet.models.elas_llama import ElasLlamaConfig, ElasLlamaForCausalLM
    from whet.models.llada import LLaDAConfig, LLaDAModelLM
    from whet.models.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM
    from whet.models.sdar import SDARConfig, SDARForCausalLM

    return {
        "llada": (LLaDAConfig, LLaDAModelLM),
        "Dream": (DreamConfig, DreamModel),
        "sdar": (SDARConfig, SDARForCausalLM),
        "llada2_moe": (LLaDA2MoeConfig, LLaDA2MoeModelLM),
        "whet_elas_llama": (ElasLlamaConfig, ElasLlamaForCausalLM),
    }


@functools.cache
def trainable_classes() -> dict[str, tuple[Any, Any]]:
    """What recipes may name: whet's own classes, and the Llama of transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return {**model_classes(), "llama": (LlamaConfig, LlamaForCausalLM)}


def loadable_types() -> list[str]:
    """Every model_type that `whet.load` reads."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from whet.models.edits.classes import edited_types

    own = {*model_classes(), *edited_types(), "diffusion_gemma"}
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *own})


def loadable_class(model_type: str) -> tuple[Any, Any]:
    """(configuration class, model class) of one of `loadable_types`.

    Whet's own, DiffusionGemma, else transformers' autoregressive language model of that type.
    """
    if model_type in model_classes():
        return model_classes()[model_type]
    if model_type.startswith("whet_"):
        from whet.models.edits.classes import edited_types

        return edited_types()[model_type]
    if model_type == "diffusion_gemma":
        from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

        return DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    return config_class, MODEL_FOR_CAUSAL_LM_MAPPING[config_class]


def is_autoregressive(model: Any) -> bool:
    """Whether a model writes left to right (it is none of the masked or diffusion LMs)."""
    from whet.models.denoiser import TRAITS

    return model.config.model_type not in TRAITS


def is_encoder(model: Any) -> bool:
    """Whether a model of transformers' that also comes as an encoder (BERT, …) is one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    from whet.models.roles.families import stock_type

    config = model.config
    both = stock_type(config.model_type) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return both and getattr(config, "is_decoder", None) is False


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

    from whet.models.denoiser import TRAITS
    from whet.models.dream import DreamConfig, DreamTokenizerFast
    from whet.models.edits.classes import register_edited

    for model_type, (config_class, model_class) in model_classes().items():
        AutoConfig.register(model_type, config_class, exist_ok=True)
        AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
        if model_type in TRAITS:
            AutoModel.register(config_class, model_class, exist_ok=True)
            AutoModelForMaskedLM.register(config_class, model_class, exist_ok=True)
    AutoTokenizer.register(DreamConfig, fast_tokenizer_class=DreamTokenizerFast, exist_ok=True)
    register_edited()
