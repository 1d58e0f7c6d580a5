"""The model to be compressed: language models as `whet.load` gives them, and encoders."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from whet import zoo
from whet.compress.calibrate import empty_model
from whet.errors import CheckpointError, OptionError, nearest
from whet.models.edits.classes import auto_class
from whet.models.loading import read_config, read_shards, resolve_directory
from whet.models.registry import register
from whet.models.roles.families import stock_type

Kind = Literal["autoregressive", "masked", "encoder"]


@dataclass(frozen=True)
class Target:
    """A checkpoint. name: as users write it. dtype: of its stored numbers.

    kind: "encoder" reads both ways and predicts no text (BERT and those like it); "masked" is a
    masked diffusion language model.
    """

    name: str
    folder: Path
    kind: Kind
    dtype: torch.dtype
    model_class: Any
    config: Any

    def load(self, dtype: torch.dtype | str = torch.float32) -> tuple[Any, Any]:
        """Model in eval mode, and tokenizer. Errors: CheckpointError."""
        if self.kind != "encoder":
            return zoo.load(self.folder, dtype=dtype)
        return _load_encoder(self.folder, dtype), self.tokenizer()

    def empty(self) -> Any:
        """The same model without weights."""
        # Edits write into a model's configuration; the target's stays.
        return empty_model(self.model_class, copy.deepcopy(self.config))

    def tokenizer(self) -> Any:
        """Errors: CheckpointError."""
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError) as error:
            why = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{self.folder}: no usable tokenizer ({why})") from error

    @property
    def context_length(self) -> int | None:
        """Most tokens it takes, where its configuration says so."""
        for key in ("max_position_embeddings", "max_sequence_length", "n_positions"):
            value = getattr(self.config, key, None)
            if isinstance(value, int) and value > 0:
                return value
        return None


def open_target(source: str | Path, *, packed: bool = False) -> Target:
    """A zoo name, a checkpoint folder or a hub name; nothing but configuration is read.

    packed: whether its weights may be packed already.
    Errors: OptionError for an unknown zoo name, or packed weights; CheckpointError for what is no
    checkpoint of a language model or encoder.
    """
    register()
    name = str(source)
    if name in zoo.names():
        folder = Path(zoo.__file__).parent / name
    elif "/" not in name and not Path(name).exists():
        raise OptionError(
            f"unknown model {name!r}: {nearest(name, zoo.names())} "
            "(a directory or a hub name owner/name works too)"
        )
    else:
        folder = resolve_directory(source)
    raw = _raw_config(folder)
    if raw.get("quantization_config") and not packed:
        method = raw["quantization_config"].get("quant_method", "some method")
        raise OptionError(
            f"{name} is quantized already ({method}): compress the model it was made from"
        )
    stored = read_shards(folder)[1]
    if _reads_both_ways(raw):
        model_class, config = _encoder_class(folder, raw)
        return Target(name, folder, "encoder", stored, model_class, config)
    model_class, config = read_config(folder)
    return Target(name, folder, _kind(config), stored, model_class, config)


def _kind(config: Any) -> Kind:
    from whet.models.denoiser import TRAITS

    return "masked" if config.model_type in TRAITS else "autoregressive"


def _raw_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no config.json")
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        str(raw["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a model configuration ({error!r})") from error
    return raw


def _reads_both_ways(raw: dict[str, Any]) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    known = stock_type(str(raw["model_type"])) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return known and not raw.get("is_decoder", False)


def _encoder_class(folder: Path, raw: dict[str, Any]) -> tuple[Any, Any]:
    import transformers

    auto = _auto(folder, raw)
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = auto._model_mapping[type(config)]
    return (kind[0] if isinstance(kind, tuple) else kind), config


def _auto(folder: Path, raw: dict[str, Any]) -> Any:
    """The Auto class of what the checkpoint was saved as. Errors: CheckpointError."""
    import transformers

    named = (raw.get("architectures") or [""])[0]
    try:
        return getattr(transformers, auto_class(named.removeprefix("Whet")))
    except OptionError as error:
        raise CheckpointError(
            f"{folder}/config.json: architectures names {named!r}, which is no base, masked or "
            "sequence classification model of a known family"
        ) from error


def _load_encoder(folder: Path, dtype: torch.dtype | str) -> Any:
    auto = _auto(folder, _raw_config(folder))
    try:
        model, info = auto.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {' '.join(str(error).split())[:300]}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            what = problem.removesuffix("_keys")
            raise CheckpointError(f"{folder}: {what} tensors: {sorted(info[problem])[:3]}")
    return model.eval()
