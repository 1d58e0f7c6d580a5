"""Training of zoo-sized models on task mixtures: everything a method's objective does not decide.

A recipe names a method, a model in its published configuration keys, a mixture of tasks and the
optimisation. A method subclasses `TaskTraining` and supplies `batch` and `loss`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from whet import rng as rng_
from whet._io import atomic_path
from whet.data.mixture import ProblemMixture, Source
from whet.errors import CheckpointError, InputError, OptionError, nearest
from whet.fit import FitSettings, Player, fit
from whet.fit.distributed import current_world
from whet.fit.ema import EMA
from whet.fit.schedules import warmup_cosine
from whet.models.registry import trainable_classes
from whet.tasks import Instance, Task, evaluation_only, get_task, trainable
from whet.tasks.answers import THINK
from whet.tasks.scratchpad.patterns import TextTask
from whet.zoo.tokenizer import character_tokenizer

Share = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DataSettings(BaseModel):
    """Shares of tasks and of canvas lengths, and how a batch is cut.

    gen_lengths: canvas lengths of diffusion models; None makes a batch as long as its longest
    response. words: further texts that are one token each. thinking: share of the problems whose
    response works the answer out first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: dict[str, Share] = Field(min_length=1)
    gen_lengths: Annotated[dict[Annotated[int, Field(gt=0)], Share] | None, Field(min_length=1)] = {
        16: 1.0
    }
    thinking: float = Field(default=0.0, ge=0, le=1)
    words: list[str] = []
    batch_size: int = Field(default=128, gt=0)
    groups: int = Field(default=1, gt=0)

    @field_validator("tasks")
    @classmethod
    def _known(cls, tasks: dict[str, float]) -> dict[str, float]:
        for name in tasks:
            task = get_task(name)
            if evaluation_only(task):
                raise ValueError(f"{name} has under 1,000 problems: it is for evaluation only")
        return tasks


class TaskRecipe(BaseModel):
    """A whole run: model configuration in the published keys, data, optimisation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str
    model: dict[str, Any]
    data: DataSettings
    fit: FitSettings

    @classmethod
    def read(cls, path: Path, *, method: str | None = None) -> Self:
        """The recipe in a YAML file, which must be for `method` where one is given.

        Errors: InputError naming the file and the key that is wrong.
        """
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
        if method not in (None, recipe.method):
            raise InputError(f"recipe {path}: method: it is for {recipe.method!r}, not {method!r}")
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


class TaskTraining(ABC):
    """One player, one turn: `model` minimises the method's loss on the mixture.

    sources: where problems come from instead of the recipe's tasks, under the same names.
    """

    method: ClassVar[str]

    def __init__(self, recipe: TaskRecipe, *, sources: Mapping[str, Source] | None = None) -> None:
        if recipe.method != self.method:
            raise OptionError(f"the recipe is for method {recipe.method!r}, not {self.method!r}")
        settings = recipe.fit
        self.recipe = recipe
        # Names without settings, each once: that is how prompts begin.
        tasks = map(get_task, recipe.data.tasks)
        words = dict.fromkeys(task.id for task in tasks if isinstance(task, TextTask))
        if recipe.data.thinking:
            words |= dict.fromkeys(THINK)
        words |= dict.fromkeys(recipe.data.words)
        self.tokenizer = character_tokenizer(words=list(words))
        torch.manual_seed(rng_.key_bits(settings.seed, "init", bits=64) >> 1)
        self.model = build_model(recipe.model, self.tokenizer)
        self.mixture = ProblemMixture(
            self.tokenizer,
            sources
            or {
                name: partial(draw_pair, get_task(name), thinking=recipe.data.thinking)
                for name in recipe.data.tasks
            },
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

    @abstractmethod
    def batch(self, step: int) -> Any:
        """The batch of a step, from its key."""

    @abstractmethod
    def loss(self, batch: Any, turn: str) -> tuple[Tensor, dict[str, float]]:
        """Mean loss in nats per token."""

    @abstractmethod
    def tokens(self, batch: Any) -> int:
        """Real tokens (padding not counted)."""

    def run(self, out: Path) -> None:
        """Train to the end (resuming if `out` holds a checkpoint), then write `out/model`."""
        torch.set_default_dtype(torch.float32)
        identity = self.recipe.model_dump(mode="json")
        fit(self, self.recipe.fit, run=out, identity=identity, label=self.recipe.method)
        world = current_world()
        if world.main:  # every process has the same weights
            self.export(out / "model")
        world.wait()

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
    return trainable_classes()[made.model_type][1](made)


_SPECIAL_IDS = ("mask_token_id", "eos_token_id", "pad_token_id")


def model_config(config: Mapping[str, Any], **ids: int) -> Any:
    """The configuration object of the recipe's `model` section.

    Errors: OptionError for an unknown model_type, an unknown key or a wrong value.
    """
    settings = dict(config)
    model_type = str(settings.pop("model_type", ""))
    classes = trainable_classes()
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


def draw_pair(task: Task, rng: np.random.Generator, *, thinking: float = 0.0) -> tuple[str, str]:
    """One training pair (prompt, response); validation and test problems are never drawn.

    thinking: probability that the response of a scratchpad task works the answer out first.
    """
    while True:
        instance = task.generate(rng)
        if not trainable(task, instance):
            continue
        if thinking and isinstance(task, TextTask) and rng.random() < thinking:
            return instance.prompt, think(rng, instance)
        return instance.prompt, instance.example


def think(rng: np.random.Generator, instance: Instance) -> str:
    """The example answer, worked out with changes of mind, then given.

    The working writes the answer character by character; with a probability drawn per problem a
    wrong character comes first and is taken back with "<". Its length therefore varies, and
    grows with the number of mistakes.
    """
    answer = instance.example
    slips = float(rng.choice([0.0, 0.1, 0.35]))
    letters = sorted(set(answer))
    steps = []
    for c in answer:
        while len(letters) > 1 and rng.random() < slips:
            wrong = [w for w in letters if w != c]
            steps.append(f"{wrong[int(rng.integers(len(wrong)))]}<")
        steps.append(c)
    return f"{THINK[0]}{''.join(steps)}{THINK[1]}{answer}"


def _set_stored_dtype(path: Path) -> None:
    import json

    from whet._io import write_json

    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = "float16"
    write_json(path, config, indent=2)
