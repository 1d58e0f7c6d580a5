"""LoRA: low-rank updates of linear layers, added through peft and merged away again.

Hu et al., arXiv 2106.09685: W x + alpha / rank · B A x with B = 0 at the start, so that the first
step sees the model as it was. Merging adds the product to W: what is left is the plain model
class, which saves in its published layout.

A published list of layer names need not fit another family (dParallel's finds four of the seven
kinds of linear layer in a LLaDA block), hence "all-linear", and an error for a name that fits
nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from whet.errors import OptionError


class LoraSettings(BaseModel):
    """targets: endings of the names of linear layers, or all of them but the output matrix.

    alpha: the update is scaled by alpha / rank. dropout: of its input, in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(default=32, gt=0)
    alpha: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | list[str] = "all-linear"


def lora_targets(model: nn.Module, targets: Literal["all-linear"] | list[str]) -> list[str]:
    """Full names of the linear layers that the settings mean, in the model's order.

    An ending is a name or several joined by dots: `q_proj`, `blocks.0.q_proj`.
    Errors: OptionError for an empty list or an ending that no linear layer has.
    """
    head = _output_names(model)
    kinds_of_layer = (nn.Linear, Conv1D)  # GPT-2's linear layers are of the second kind
    linear = [
        n for n, m in model.named_modules() if isinstance(m, kinds_of_layer) and n not in head
    ]
    if targets == "all-linear":
        return linear
    if not targets:
        raise OptionError('targets is empty: name endings of linear layers or say "all-linear"')
    for ending in targets:
        if not any(_ends(name, ending) for name in linear):
            kinds = sorted({name.rpartition(".")[2] for name in linear})
            raise OptionError(
                f"targets: no linear layer of {type(model).__name__} ends with {ending!r}: "
                f"there are {', '.join(kinds)}"
            )
    return [name for name in linear if any(_ends(name, ending) for ending in targets)]


def add_lora(model: Any, settings: LoraSettings) -> Any:
    """The model inside peft's wrapper, of which only the low-rank updates need gradients.

    The model itself is changed: its layers are wrapped in place.
    Errors: those of `lora_targets`; OptionError where peft is missing.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise OptionError("LoRA needs the extra whet[lora]") from None
    targets = lora_targets(model, settings.targets)
    transposed = {isinstance(model.get_submodule(name), Conv1D) for name in targets}
    if len(transposed) > 1:
        raise OptionError("targets: linear layers stored in two ways need a LoRA each")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        fan_in_fan_out=transposed.pop(),
    )
    return get_peft_model(model, config)


def merge_lora(model: Any) -> Any:
    """The plain model with the updates added to its weights; the wrapped one is used up."""
    return model.merge_and_unload()


def _output_names(model: nn.Module) -> set[str]:
    """Names of the output matrix, also where it is not one of the class's own attributes."""
    find = getattr(model, "get_output_embeddings", None)
    head = find() if find is not None else None
    return {name for name, module in model.named_modules() if head is not None and module is head}


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")
