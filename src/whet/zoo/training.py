"""Training of zoo-sized models on task mixtures: everything a method's objective does not decide.

A method subclasses `Training` (or `TaskTraining`, for a fresh model on a mixture of tasks) and
supplies `batch` and `loss`. A `TaskRecipe` names a method, a model in its published configuration
keys, a mixture of tasks and the optimisation.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig

from whet import rng as rng_
from whet._io import atomic_path
from whet.data.mixture import ProblemMixture, Source
from whet.errors import CheckpointError, OptionError, nearest
from whet.fit import Player, fit
from whet.fit.distributed import current_world
from whet.fit.ema import EMA
from whet.fit.schedules import warmup_cosine
from whet.models.registry import trainable_classes
from whet.tasks import Instance, Task, evaluation_only, get_task, trainable
from whet.tasks.answers import THINK
from whet.tasks.scratchpad.patterns import TextTask
from whet.zoo import load
from whet.zoo.recipe import Recipe
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


class TaskRecipe(Recipe):
    """A whole run: model configuration in the published keys, data, optimisation."""

    model: dict[str, Any]
    data: DataSettings

    def check(self) -> None:
        """Errors: OptionError for a `model` section that no class takes."""
        model_config(self.model, **dict.fromkeys(_SPECIAL_IDS, 0))


class Training(ABC):
    """One player, one turn: `model` minimises the method's loss.

    A method makes its model, hands it over and supplies `batch`, `loss` and `tokens`. Parameters
    that need no gradient stay out of the optimizer.
    """

    method: ClassVar[str]
    recipe_type: ClassVar[type[Recipe]] = Recipe

    def __init__(self, recipe: Recipe, model: Any, tokenizer: Any) -> None:
        self.check_method(recipe)
        self.recipe, self.model, self.tokenizer = recipe, model, tokenizer
        settings = recipe.fit
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=settings.learning_rate,
            betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay,
        )
        self.players: Mapping[str, Player] = {
            "model": Player(
                model,
                optimizer,
                warmup_cosine(settings.steps, settings.warmup),
                EMA(model, settings.ema) if settings.ema else None,
                settings.clip,
            )
        }

    @classmethod
    def check_method(cls, recipe: Recipe) -> None:
        """Errors: OptionError for another method's recipe."""
        if recipe.method != cls.method:
            raise OptionError(f"the recipe is for method {recipe.method!r}, not {cls.method!r}")

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

    def prepare(self, out: Path) -> None:  # noqa: B027  (most methods need nothing)
        """What has to be there before the first step, made in the run's folder or found there."""

    def run(self, out: Path) -> None:
        """Train to the end (resuming if `out` holds a checkpoint), then write `out/model`."""
        torch.set_default_dtype(torch.float32)
        self.prepare(out)
        identity = self.recipe.model_dump(mode="json")
        fit(self, self.recipe.fit, run=out, identity=identity, label=self.recipe.method)
        world = current_world()
        if world.main:  # every process has the same weights
            self.export(out / "model")
        world.wait()

    def export(self, directory: Path) -> None:
        """Write the averaged model, whole or not at all."""
        player = self.players["model"]
        with atomic_path(directory) as temporary:
            if player.ema is not None:
                with player.ema.swapped_in(player.module):
                    self.save(temporary)
            else:
                self.save(temporary)

    def save(self, directory: Path) -> None:
        """Fill an empty folder with the model as it is now."""
        save_half(self.model, self.tokenizer, directory)


def save_half(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write weights in float16 and the tokenizer, in the published layout."""
    half = {
        n: (t.half() if t.is_floating_point() else t).detach().contiguous()
        for n, t in model.state_dict().items()
    }
    model.save_pretrained(directory, state_dict=half)
    tokenizer.save_pretrained(directory)
    _set_stored_dtype(directory / "config.json")


def start_model(source: str | Path) -> tuple[Any, Any]:
    """Model and tokenizer of a checkpoint, in float32 and training mode.

    Errors: those of `whet.load`.
    """
    model, tokenizer = load(source, dtype=torch.float32)
    return model.train(), tokenizer


class TaskTraining(Training):
    """A fresh model on the recipe's mixture of tasks.

    sources: where problems come from instead of the recipe's tasks, under the same names.
    """

    recipe_type = TaskRecipe
    recipe: TaskRecipe

    def __init__(self, recipe: TaskRecipe, *, sources: Mapping[str, Source] | None = None) -> None:
        self.check_method(recipe)
        tokenizer = task_tokenizer(recipe.data)
        torch.manual_seed(rng_.key_bits(recipe.fit.seed, "init", bits=64) >> 1)
        super().__init__(recipe, build_model(recipe.model, tokenizer), tokenizer)
        self.mixture = task_mixture(recipe.data, tokenizer, seed=recipe.fit.seed, sources=sources)


def task_tokenizer(data: DataSettings) -> Any:
    """The zoo's tokenizer with the words of these tasks.

    Names without settings, each once: that is how prompts begin.
    """
    tasks = map(get_task, data.tasks)
    words = dict.fromkeys(task.id for task in tasks if isinstance(task, TextTask))
    if data.thinking:
        words |= dict.fromkeys(THINK)
    words |= dict.fromkeys(data.words)
    return character_tokenizer(words=list(words))


def task_mixture(
    data: DataSettings,
    tokenizer: Any,
    *,
    seed: int,
    sources: Mapping[str, Source] | None = None,
) -> ProblemMixture:
    """Batches of training problems; `sources` replaces the tasks, under the same names."""
    return ProblemMixture(
        tokenizer,
        sources
        or {
            name: partial(draw_pair, get_task(name), thinking=data.thinking) for name in data.tasks
        },
        weights=data.tasks,
        gen_lengths=data.gen_lengths,
        batch_size=data.batch_size,
        groups=data.groups,
        seed=seed,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


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
