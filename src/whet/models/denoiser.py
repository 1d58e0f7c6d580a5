"""One adapter for every masked LM: what decoders and training objectives need to know of a model.

Families differ in mask id, alignment of logits, attention pattern, padded vocabulary and EOS
habits; most published bugs sit exactly there. A family declares its facts once, in `TRAITS`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from whet.errors import CheckpointError, InputError


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Facts of a model family.

    shift: logits[i] predict token i + 1. attention: `full`, or `block_causal` with a trained
    block length. context: trained context where the configuration claims more.
    """

    shift: bool = False
    attention: Literal["full", "block_causal"] = "full"
    block_length: int | None = None
    context: int | None = None


TRAITS: dict[str, Traits] = {
    "llada": Traits(),
    "Dream": Traits(shift=True, context=2048),
}


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A masked LM as decoders see it. Build it with `Denoiser.of(model, tokenizer)`.

    vocab_size: ids from here on are never predicted (padded rows of the head).
    """

    model: Any
    traits: Traits
    mask_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    vocab_size: int
    context_length: int

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None) -> Denoiser:
        """Read the facts off a model, its configuration and, where given, its tokenizer.

        A model may be wrapped (PEFT). Errors: CheckpointError for a family without traits or a
        configuration without a mask token.
        """
        if isinstance(model, Denoiser):
            return model
        config = model.config
        traits = TRAITS.get(config.model_type)
        if traits is None:
            raise CheckpointError(
                f"model_type {config.model_type!r} is no masked LM that whet knows: "
                f"known are {', '.join(TRAITS)}"
            )
        mask = getattr(config, "mask_token_id", None)
        if mask is None:
            raise CheckpointError("the configuration has no mask_token_id")
        eos = config.eos_token_id
        eos_ids = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
        rows = config.vocab_size
        pad = config.pad_token_id
        return cls(
            model=model,
            traits=traits,
            mask_token_id=mask,
            eos_token_ids=eos_ids,
            pad_token_id=pad if pad is not None else (eos_ids[0] if eos_ids else mask),
            vocab_size=rows if tokenizer is None else min(rows, len(tokenizer)),
            context_length=min(traits.context or 2**62, config.max_position_embeddings),
        )

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    def replace_model(self, model: Any) -> Denoiser:
        """The same facts around another module (a wrapper, a copy in another precision)."""
        return dataclasses.replace(self, model=model)

    def check_prompt(self, ids: Int[Tensor, " P"], name: str = "prompt") -> None:
        """Errors: InputError for an empty prompt, a mask token or an id without an embedding."""
        if ids.numel() == 0:
            raise InputError(f"{name} is empty: give at least one token")
        if bool((ids == self.mask_token_id).any()):
            raise InputError(
                f"{name} contains the mask token (id {self.mask_token_id}): "
                "use infill for text with gaps"
            )
        highest, lowest = int(ids.max()), int(ids.min())
        if highest >= self.vocab_size or lowest < 0:
            wrong = highest if highest >= self.vocab_size else lowest
            raise InputError(
                f"{name} contains token id {wrong}: ids go from 0 to {self.vocab_size - 1}"
            )

    def hidden(
        self,
        tokens: Int[Tensor, "R L"],
        attention_mask: Bool[Tensor, "R L"] | None = None,
    ) -> Float[Tensor, "R L D"]:
        """Final hidden states of a batch of canvases. Padding, if any, is on the left."""
        position_ids = None
        if attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        out = base_model(self.model)(
            input_ids=tokens, attention_mask=attention_mask, position_ids=position_ids
        )
        states: Tensor = out.last_hidden_state
        return states

    def head(
        self,
        hidden: Float[Tensor, "R L D"],
        rows: Int[Tensor, " N"],
        positions: Int[Tensor, " N"],
    ) -> Float[Tensor, "N V"]:
        """Logits that predict the tokens at (rows, positions); nothing else is computed.

        In a shifted model position i is predicted by state i - 1, and position 0, which must be a
        known token, by state 0.
        """
        source = (positions - 1).clamp_min(0) if self.traits.shift else positions
        logits: Tensor = unwrap(self.model).head(hidden[rows, source])
        return logits

    def suppress(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Set the mask token and ids beyond the tokenizer to -inf, in place."""
        logits[:, self.mask_token_id] = -torch.inf
        logits[:, self.vocab_size :] = -torch.inf
        return logits

    def logits(
        self,
        tokens: Int[Tensor, "R L"],
        attention_mask: Bool[Tensor, "R L"] | None,
        rows: Int[Tensor, " N"],
        positions: Int[Tensor, " N"],
    ) -> Float[Tensor, "N V"]:
        """One forward: what `head` and `suppress` say of the tokens at (rows, positions)."""
        return self.suppress(self.head(self.hidden(tokens, attention_mask), rows, positions))


def unwrap(model: Any) -> Any:
    """The whet model inside a wrapper such as PEFT's, the model itself otherwise."""
    # The class is asked: PEFT's wrappers pass attributes of instances on to their content.
    while not hasattr(type(model), "head") and hasattr(model, "base_model"):
        inner = model.base_model
        model = getattr(inner, "model", inner)
    return model


def base_model(model: Any) -> nn.Module:
    """The stack without its head."""
    base: nn.Module = unwrap(model).base_model
    return base
