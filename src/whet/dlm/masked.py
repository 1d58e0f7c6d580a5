"""Plain masked-diffusion training, the baseline every distillation starts from.

LLaDA, arXiv 2502.09992: equation 5 on the response tokens only (the prompt is never masked), with
the response filled up to the canvas with EOS tokens that count as response. Shifted models
(Dream) are trained through the same adapter that decodes them.

Deviation: mask levels are stratified over the batch, which changes no expectation.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from whet import rng as rng_
from whet._io import atomic_path
from whet.data.mixture import ProblemMixture, ResponseBatch
from whet.errors import CheckpointError, InputError, OptionError, nearest
from whet.fit import FitSettings, Player, fit
from whet.fit.ema import EMA
from whet.fit.schedules import warmup_cosine
from whet.models.denoiser import Denoiser
from whet.models.registry import model_classes
from whet.noise.masked import draw_mask, mask_levels, masked_bound
from whet.tasks import Task, get_task, split_of
from whet.zoo.tokenizer import character_tokenizer

Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DataSettings(BaseModel):
    """Shares of tasks and of canvas lengths, and how a batch is cut."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: dict[str, Share] = Field(min_length=1)
    gen_lengths: dict[Annotated[int, Field(gt=0)], Share] = Field(default={16: 1.0}, min_length=1)
    batch_size: int = Field(default=128, gt=0)
    groups: int = Field(default=1, gt=0)

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: dict[str, float]) -> dict[str, float]:
        for name in tasks:
            get_task(name)
        return tasks


class MaskedRecipe(BaseModel):
    """A whole run: model configuration in the published keys, data, optimisation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["masked"]
    model: dict[str, Any]
    data: DataSettings
    fit: FitSettings

    @classmethod
    def read(cls, path: Path) -> MaskedRecipe:
        """Errors: InputError naming the file and the key that is wrong."""
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read recipe {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            why = " ".join(str(error).split())
            raise InputError(f"recipe {path} is not YAML: {why}") from error
        try:
            recipe = cls.model_validate(raw)
            model_config(recipe.model, **dict.fromkeys(_SPECIAL_IDS, 0))
        except ValidationError as error:
            raise InputError(f"recipe {path}: {cls._explain(error)}") from error
        except OptionError as error:
            raise InputError(f"recipe {path}: {error}") from error
        return recipe

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        # An unknown key first: it is often the misspelt form of one that is reported missing.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        where = ".".join(map(str, first["loc"])) or "recipe"
        if first["type"] != "extra_forbidden":
            return f"{where}: {first['msg'].removeprefix('Value error, ')}"
        section: Any = cls
        for part in first["loc"][:-1]:
            section = section.model_fields[str(part)].annotation
        key = str(first["loc"][-1])
        return f"unknown key {where!r}: {nearest(key, section.model_fields)}"


class MaskedTraining:
    """One player, one turn: `model` minimises the bound on the response."""

    recipe_class = MaskedRecipe

    def __init__(self, recipe: MaskedRecipe) -> None:
        settings = recipe.fit
        self.recipe = recipe
        # Names without settings, each once: that is how prompts begin.
        words = dict.fromkeys(get_task(name).id for name in recipe.data.tasks)
        self.tokenizer = character_tokenizer(words=list(words))
        torch.manual_seed(rng_.key_bits(settings.seed, "init", bits=64) >> 1)
        self.model = build_model(recipe.model, self.tokenizer)
        self.denoiser = Denoiser.of(self.model, self.tokenizer)
        self.mixture = ProblemMixture(
            self.tokenizer,
            {name: partial(_draw, get_task(name)) for name in recipe.data.tasks},
            weights=recipe.data.tasks,
            gen_lengths=recipe.data.gen_lengths,
            batch_size=recipe.data.batch_size,
            groups=recipe.data.groups,
            seed=settings.seed,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay,
        )
        self.players: Mapping[str, Player] = {
            "model": Player(
                self.model,
                optimizer,
                warmup_cosine(settings.steps, settings.warmup),
                EMA(self.model, settings.ema) if settings.ema else None,
                settings.clip,
            )
        }

    def turns(self, step: int) -> Sequence[str]:
        """The model, every step."""
        return ("model",)

    def batch(self, step: int) -> list[tuple[ResponseBatch, Tensor, Tensor]]:
        """Sub-batches with their mask levels [B] and masks [B, L]."""
        parts = self.mixture.batch(step)
        rng = rng_.keyed(self.recipe.fit.seed, "mask", step)
        levels = mask_levels(rng, sum(len(p.tokens) for p in parts))
        out, start = [], 0
        for part in parts:
            t = levels[start : start + len(part.tokens)]
            start += len(part.tokens)
            out.append((part, t, draw_mask(rng, part.response, t)))
        return out

    def tokens(self, batch: list[tuple[ResponseBatch, Tensor, Tensor]]) -> int:
        """Real tokens (padding not counted)."""
        return sum(int(part.attention_mask.sum()) for part, _, _ in batch)

    def loss(
        self, batch: list[tuple[ResponseBatch, Tensor, Tensor]], turn: str
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean bound in nats per response token."""
        bounds = []
        for part, levels, mask in batch:
            rows, positions = mask.nonzero(as_tuple=True)
            noisy = part.tokens.masked_fill(mask, self.denoiser.mask_token_id)
            logits = self.denoiser.logits(noisy, part.attention_mask, rows, positions)
            bounds.append(masked_bound(logits, part.tokens[mask], rows, levels, part.lengths))
        return torch.cat(bounds).mean(), {}

    def run(self, out: Path) -> None:
        """Train to the end (resuming if `out` holds a checkpoint), then write `out/model`."""
        torch.set_default_dtype(torch.float32)
        identity = self.recipe.model_dump(mode="json")
        fit(self, self.recipe.fit, run=out, identity=identity, label=self.recipe.method)
        self.export(out / "model")

    def export(self, directory: Path) -> None:
        """Write averaged weights in float16 and the tokenizer, in the published layout."""
        player = self.players["model"]
        with atomic_path(directory) as temporary:
            if player.ema is not None:
                with player.ema.swapped_in(self.model):
                    self._save(temporary)
            else:
                self._save(temporary)

    def _save(self, directory: Path) -> None:
        half = {n: t.detach().half().contiguous() for n, t in self.model.state_dict().items()}
        self.model.save_pretrained(directory, state_dict=half)
        self.tokenizer.save_pretrained(directory)
        _set_stored_dtype(directory / "config.json")


def build_model(config: Mapping[str, Any], tokenizer: Any) -> Any:
    """A freshly initialised model from configuration keys; special ids come from the tokenizer.

    Errors: OptionError for an unknown model_type or key, a wrong value or too small a vocabulary.
    """
    ids = {name: getattr(tokenizer, name) for name in _SPECIAL_IDS}
    made = model_config(config, **ids)
    if config.get("vocab_size", 0) < len(tokenizer):
        raise OptionError(f"vocab_size must be at least the tokenizer's {len(tokenizer)}")
    return model_classes()[made.model_type][1](made)


_SPECIAL_IDS = ("mask_token_id", "eos_token_id", "pad_token_id")


def model_config(config: Mapping[str, Any], **ids: int) -> Any:
    """The configuration object of the recipe's `model` section.

    Errors: OptionError for an unknown model_type, an unknown key or a wrong value.
    """
    settings = dict(config)
    model_type = str(settings.pop("model_type", ""))
    classes = model_classes()
    if model_type not in classes:
        raise OptionError(f"model_type {model_type!r} is unknown: {nearest(model_type, classes)}")
    config_class = classes[model_type][0]
    known = {"rope_theta"}
    for cls in config_class.__mro__:
        if issubclass(cls, PreTrainedConfig) and cls is not PreTrainedConfig:
            known |= set(inspect.signature(cls.__init__).parameters)
    known -= {"self", "kwargs", *_SPECIAL_IDS}
    for key in settings:
        if key not in known:
            raise OptionError(f"unknown key {f'model.{key}'!r}: {nearest(key, known)}")
    try:
        return config_class(**settings, **ids)
    except (CheckpointError, StrictDataclassError, TypeError, ValueError) as error:
        raise OptionError(f"model: {' '.join(str(error).split())}") from error


def _draw(task: Task, rng: Any) -> tuple[str, str]:
    """One training pair; validation and test prompts are never drawn."""
    while True:
        instance = task.generate(rng)
        if split_of(instance.prompt) == "train":
            return instance.prompt, instance.example


def _set_stored_dtype(path: Path) -> None:
    import json

    from whet._io import write_json

    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float16"
    write_json(path, config, indent=2)
