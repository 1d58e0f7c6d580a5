"""lm-evaluation-harness with whet's models and tasks: `python -m whet.lm_eval --model whet ...`.

The command line is the harness's own (`run`, `ls`, `validate` and all their flags), with the model
`whet` and the tasks `beyondbench_*` and `whet_*` beside its own and the user's. Example:

    python -m whet.lm_eval --model whet --model_args pretrained=tiny-dlm,decoder=soar \
        --tasks whet_scratchpad --limit 100

Importing this module registers the model, for `lm_eval.simple_evaluate(model="whet", ...)`.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.errors import OptionError, WhetError
from whet.evaluate.likelihood import Estimator
from whet.evaluate.lm_eval_bridge import WhetLM
from whet.evaluate.lm_eval_tasks import write_tasks

_log = logging.getLogger("lm_eval.whet")  # the harness shows its own loggers only
_BATCH_SIZE = 32  # where the harness says "auto"


class NamedModel(WhetLM):
    """The model `whet` of the harness, from `--model_args`.

    pretrained: zoo name, directory or hub name. decoder: of a diffusion model, with `settings` of
    its own such as block_length=32. preset: generation settings of a paper by name, under what is
    given beside it. gen_length: tokens of every text. samples, estimator: of a diffusion model's
    likelihoods. cfg_scale: guidance of its likelihoods and texts. seed: of all noise. batch_size:
    "auto" is whet's default. A cuda device on a machine without one becomes the CPU, as the harness
    asks for cuda:0 by itself.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        decoder: str | None = None,
        preset: str | None = None,
        gen_length: int | None = None,
        samples: int = 128,
        estimator: Estimator = "stratified",
        cfg_scale: float = 0.0,
        seed: int = 0,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        from whet.bench.eval_models import eval_model
        from whet.models.loading import check_dtype

        if cfg_scale:
            settings["cfg_scale"] = cfg_scale
        if preset is not None:
            decoder, gen_length, settings = _with_preset(preset, decoder, gen_length, settings)
        model = eval_model(
            pretrained,
            decoder=_decoder(decoder, settings),
            batch_size=_batch_size(batch_size),
            device=usable_device(device),
            dtype=check_dtype(dtype),
            seed=seed,
            samples=samples,
            estimator=estimator,
            cfg_scale=cfg_scale,
        )
        super().__init__(model, gen_length=gen_length)


def usable_device(device: str | None) -> str:
    """The device asked for, or the CPU where it is a cuda device and there is none."""
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if device.startswith("cuda") and not torch.cuda.is_available() else device


def register() -> None:
    """Make the model `whet` known to the harness; again does no harm."""
    from lm_eval.api.registry import model_registry

    if "whet" not in model_registry:
        model_registry.register("whet", target="whet.lm_eval:NamedModel")


def main() -> None:
    """The harness's command line. Errors of the user end in one sentence and exit status 2."""
    from lm_eval.__main__ import cli_evaluate

    register()
    try:
        with known_tasks(_tasks_named(sys.argv)):
            cli_evaluate()
    except WhetError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def known_tasks(wanted: Collection[str] = ()) -> Iterator[None]:
    """Within it, every TaskManager that the harness's command line makes also knows whet's tasks.

    `--include_path` takes one folder, which stays the user's and wins; so ours is added where the
    commands look the class up. wanted: where all of these are whet's, the harness's own tasks are
    not indexed, which takes it ten seconds.
    """
    import lm_eval.tasks as host

    original = host.TaskManager

    def with_ours(*, include_path: Any = None, **settings: Any) -> Any:
        theirs = include_path if isinstance(include_path, list | tuple) else [include_path]
        if only_ours:
            settings["include_defaults"] = False
        return original(include_path=[ours, *(p for p in theirs if p)], **settings)

    with tempfile.TemporaryDirectory(prefix="whet-tasks-") as ours:
        names = write_tasks(Path(ours))
        only_ours = bool(wanted) and set(wanted) <= set(names)
        host.TaskManager = with_ours
        try:
            yield
        finally:
            host.TaskManager = original


def _tasks_named(words: Sequence[str]) -> list[str]:
    """What follows `--tasks` on a command line; nothing where that is not plain to see."""
    found: list[str] = []
    reading = False
    for word in words:
        if word.startswith("-"):
            flag, _, value = word.partition("=")
            reading = flag in ("--tasks", "-t")
            word = value
        if reading:
            found += [name for name in word.split(",") if name]
    return found


def _with_preset(
    name: str, decoder: str | None, gen_length: int | None, settings: Mapping[str, Any]
) -> tuple[str, int, dict[str, Any]]:
    """Decoder, canvas and settings of a preset, under those given.

    What a model cannot set (examples, chat template) is logged. Errors: OptionError for an unknown
    preset or another decoder.
    """
    from whet.tasks.static import get_preset

    preset = get_preset(name)
    if decoder is not None and decoder != preset.decoder:
        raise OptionError(f"preset={name} is for decoder={preset.decoder}, not {decoder}")
    chat = " --apply_chat_template" if preset.chat else ""
    _log.info(
        "preset %s is for --tasks whet_%s --num_fewshot %d%s",
        name,
        preset.task,
        preset.num_fewshot,
        chat,
    )
    return preset.decoder, gen_length or preset.gen_length, {**preset.settings, **settings}


def _decoder(decoder: str | None, settings: Mapping[str, Any]) -> str | None:
    """`NAME:key=value,...` from a name and settings beside it."""
    from whet.bench.eval_models import DEFAULT_DECODER

    if not settings:
        return decoder
    name = decoder or DEFAULT_DECODER
    text = ",".join(f"{key}={value}" for key, value in settings.items())
    return f"{name},{text}" if ":" in name else f"{name}:{text}"


def _batch_size(value: int | str | None) -> int:
    if value is None or str(value).startswith("auto"):
        return _BATCH_SIZE
    if not str(value).isdecimal() or int(value) < 1:
        raise OptionError(f"batch_size={value!r} must be auto or a whole number of at least 1")
    return int(value)


register()
if __name__ == "__main__":
    # By its real name, so that the model is one class whoever imports it.
    from whet.lm_eval import main as run

    run()
