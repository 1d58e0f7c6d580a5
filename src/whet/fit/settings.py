"""What every training run shares."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class FitSettings(BaseModel):
    """What every run shares. clip: largest gradient norm. ema: decay, 0 = off.

    accumulation: parts of a batch that are back-propagated one after the other (less memory, the
    same step). activation_checkpointing: blocks are worked out again on the way back instead of
    being kept. mixed_precision: type of the matrix products; weights stay as they are. "fp16"
    scales the loss and leaves out steps whose gradients overflow.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta2: float = Field(default=0.98, gt=0, lt=1)
    clip: float = Field(default=1.0, gt=0)
    ema: float = Field(default=0.999, ge=0, lt=1)
    seed: int = 0
    checkpoint_every: int = Field(default=500, gt=0)
    log_every: int = Field(default=20, gt=0)
    accumulation: int = Field(default=1, gt=0)
    activation_checkpointing: bool = False
    mixed_precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Settings that came later are left out at their defaults.

        Checkpoints carry their recipe: those written before a setting existed still match.
        """
        fields = type(self).model_fields
        return {
            name: value
            for name, value in handler(self).items()
            if name not in _LATER or value != fields[name].default
        }


_LATER = ("accumulation", "activation_checkpointing", "mixed_precision")
