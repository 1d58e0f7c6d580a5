"""One adapter for every masked LM: what decoders and training objectives need to know of a model.

Families differ in mask id, alignment of logits, attention pattern, padded vocabulary and EOS
habits; most published bugs sit exactly there. A family declares its facts once, in `TRAITS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from whet.errors import CheckpointError, InputError
from whet.models.kv import CanvasCache, canvas_mask


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Facts of a model family.

    shift: logits[i] predict token i + 1. attention: `full`, or `block_causal` in blocks of the
    configuration's `block_length`. context: trained context where the configuration claims more.
    end_of_turn: the token that ends a turn in instruction-tuned checkpoints, beside EOS. noise:
    what unfilled positions hold, the mask token or random (`uniform`) ones.
    """

    shift: bool = False
    noise: Literal["mask", "uniform"] = "mask"
    attention: Literal["full", "block_causal"] = "full"
    context: int | None = None
    end_of_turn: str | None = None


# Marks positions to fill on canvases of models that have no mask token; never fed to a model.
BLANK = -1

TRAITS: dict[str, Traits] = {
    "llada": Traits(end_of_turn="<|eot_id|>"),
    "Dream": Traits(shift=True, context=2048, end_of_turn="<|im_end|>"),
    "sdar": Traits(attention="block_causal", end_of_turn="<|im_end|>"),
    "diffusion_gemma": Traits(noise="uniform", end_of_turn="<turn|>"),
    "llada2_moe": Traits(attention="block_causal", end_of_turn="<|role_end|>"),
}
# A model whose shape whet has changed keeps its family's habits.
TRAITS |= {f"whet_{name}": TRAITS[name] for name in ("llada", "Dream", "sdar")}


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A masked LM as decoders see it. Build it with `Denoiser.of(model, tokenizer)`.

    vocab_size: ids from here on are never predicted (padded rows of the head). end_of_turn_ids:
    what else ends a text: the end of a turn in instruction-tuned checkpoints. block_length: of
    block-causal models, None in models with full attention.
    """

    model: Any
    traits: Traits
    mask_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    vocab_size: int
    context_length: int
    end_of_turn_ids: tuple[int, ...] = ()
    block_length: int | None = None

    @classmethod
    def of(cls, model: Any, tokenizer: Any = None) -> Denoiser:
        """Read the facts off a model, its configuration and, where given, its tokenizer.

        Without one, the tokenizer that `whet.load` left on the model is used; a model that came
        another way has none, and then every row of the head counts as a token.
        A model may be wrapped (PEFT). Errors: CheckpointError for a family without traits or a
        configuration without a mask token.
        """
        if isinstance(model, Denoiser):
            return model
        config = model.config
        traits = TRAITS.get(config.model_type)
        sizes = config
        if traits is None:
            raise CheckpointError(
                f"model_type {config.model_type!r} is no masked LM that whet knows: "
                f"known are {', '.join(TRAITS)}"
            )
        mask = getattr(config, "mask_token_id", None)
        if traits.noise == "uniform":
            mask, sizes = BLANK, config.get_text_config()
        if mask is None:
            raise CheckpointError("the configuration has no mask_token_id")
        tokenizer = tokenizer or getattr(unwrap(model), "tokenizer", None)
        generation = getattr(unwrap(model), "generation_config", None)
        eos_ids = _ids(sizes.eos_token_id)
        ends = [getattr(generation, "eos_token_id", None)]
        rows, pad = sizes.vocab_size, sizes.pad_token_id
        if tokenizer is not None:
            rows = min(rows, len(tokenizer))
            ends.append(tokenizer.get_vocab().get(traits.end_of_turn))
        return cls(
            model=model,
            traits=traits,
            mask_token_id=mask,
            eos_token_ids=eos_ids,
            end_of_turn_ids=tuple(i for i in _ids(*ends) if i not in eos_ids),
            pad_token_id=pad if pad is not None else (eos_ids[0] if eos_ids else mask),
            vocab_size=rows,
            context_length=min(traits.context or 2**62, sizes.max_position_embeddings),
            block_length=config.block_length if traits.attention == "block_causal" else None,
        )

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Every token after which a text is over: EOS and the end of a turn."""
        return self.eos_token_ids + self.end_of_turn_ids

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

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
        tokens: Int[Tensor, "R Q"],
        attention_mask: Bool[Tensor, "R L"] | None = None,
        *,
        embeds: Float[Tensor, "R Q D"] | None = None,
        columns: Int[Tensor, "R Q"] | None = None,
        cache: CanvasCache | None = None,
        length: int | None = None,
    ) -> Float[Tensor, "R Q D"]:
        """Final hidden states of canvases, or of the `columns` of canvases that a cache knows.

        attention_mask: 1 at real tokens of the whole canvases; padding, if any, is on the left.
        embeds: embeddings to use in place of the tokens' own. length: with `columns`, how many
        key columns are attended to (default: the whole canvas).
        """
        position_ids, mask = None, attention_mask
        if columns is not None:
            keys = length if length is not None else cache.length if cache is not None else 0
            if attention_mask is None:
                first = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
            else:
                first = (~attention_mask).sum(-1)
            position_ids = (columns - first[:, None]).clamp_min(0)
            mask = canvas_mask(first, columns, keys, self.block_length)
        elif attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
        inputs: dict[str, Any] = {"attention_mask": mask, "position_ids": position_ids}
        if cache is not None:
            inputs["past_key_values"] = cache
        inputs["input_ids" if embeds is None else "inputs_embeds"] = (
            tokens if embeds is None else embeds
        )
        states: Tensor = base_model(self.model)(**inputs).last_hidden_state
        return states

    def read(self, tokens: Int[Tensor, "R Q"], cache: Any) -> None:
        """Let the encoder of a model that has one read on: its cache grows by these tokens."""
        known = int(cache.get_seq_length())
        position = torch.arange(known, known + tokens.shape[1], device=tokens.device)[None]
        encoder = unwrap(self.model).model.encoder
        encoder(input_ids=tokens, past_key_values=cache, position_ids=position)

    def refine(
        self, tokens: Int[Tensor, "R Q"], cache: Any, condition: Float[Tensor, "R Q V"] | None
    ) -> Float[Tensor, "R Q D"]:
        """States of a block behind what the encoder has read.

        condition: logits of the step before (self-conditioning).
        """
        known = int(cache.get_seq_length())
        position = torch.arange(known, known + tokens.shape[1], device=tokens.device)[None]
        out = unwrap(self.model).model.decoder(
            decoder_input_ids=tokens,
            past_key_values=cache,
            self_conditioning_logits=condition,
            decoder_position_ids=position,
        )
        states: Tensor = out.last_hidden_state
        return states

    def source(self, positions: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """The column whose state predicts the token at each position.

        In a shifted model position i is predicted by state i - 1, and position 0, which must be a
        known token, by state 0.
        """
        return (positions - 1).clamp_min(0) if self.traits.shift else positions

    def project(self, states: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Logits of hidden states."""
        model = unwrap(self.model)
        if hasattr(type(model), "head"):
            logits: Tensor = model.head(states)
            return logits
        logits = model.lm_head(states)
        cap = getattr(model, "final_logit_softcapping", None)
        if cap is not None:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            logits = (logits / cap).tanh() * cap
        return logits

    def head(
        self,
        hidden: Float[Tensor, "R L D"],
        rows: Int[Tensor, " N"],
        positions: Int[Tensor, " N"],
    ) -> Float[Tensor, "N V"]:
        """Logits that predict the tokens at (rows, positions); nothing else is computed."""
        return self.project(hidden[rows, self.source(positions)])

    def embedding(self) -> Float[Tensor, "V D"]:
        """The input embedding matrix."""
        weight: Tensor = unwrap(self.model).get_input_embeddings().weight
        return weight

    def suppress(self, logits: Float[Tensor, "N V"]) -> Float[Tensor, "N V"]:
        """Set the mask token and ids beyond the tokenizer to -inf, in place."""
        if self.mask_token_id != BLANK:
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


def _ids(*found: int | list[int] | None) -> tuple[int, ...]:
    """Token ids that may be absent, one or several, each once."""
    flat = [i for f in found if f is not None for i in (f if isinstance(f, list) else [f])]
    return tuple(dict.fromkeys(flat))


def unwrap(model: Any) -> Any:
    """The whet model inside a wrapper such as PEFT's, the model itself otherwise."""
    # The class is asked: PEFT's wrappers pass attributes of instances on to their content.
    while not _is_lm(model) and hasattr(model, "base_model"):
        inner = model.base_model
        model = getattr(inner, "model", inner)
    return model


def _is_lm(model: Any) -> bool:
    """One of whet's classes, or transformers' own with its output matrix."""
    return hasattr(type(model), "head") or "lm_head" in getattr(model, "_modules", {})


def base_model(model: Any) -> nn.Module:
    """The stack without its head."""
    base: nn.Module = unwrap(model).base_model
    return base
