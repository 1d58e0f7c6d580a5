"""`whet train METHOD --config RECIPE`: train a model from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(
    name="train",
    help_epilogue="Example: `whet train masked --config tiny-dlm --out runs/tiny-dlm`",
)


@app.default
def train(
    method: str = "masked",
    *,
    config: Annotated[str, Parameter(help="Recipe in the package (a zoo name) or a YAML file.")],
    out: Annotated[Path | None, Parameter(help="Run folder; resumed if it holds one.")] = None,
    threads: Annotated[int | None, Parameter(help="CPU threads (default: torch's choice).")] = None,
) -> None:
    """Train a model; the run folder gets checkpoints, metrics.jsonl and, at the end, `model/`.

    Under `torchrun` every process takes its part of each batch. SIGTERM and Ctrl-C finish the
    step and save; the same command goes on.

    Parameters
    ----------
    method
        A method with a training half, from `whet methods`.
    """
    from whet import catalogue
    from whet.cli._common import quiet_transformers
    from whet.errors import InputError, OptionError, nearest
    from whet.fit.distributed import process_group
    from whet.zoo import recipes

    quiet_transformers()
    training = catalogue.resolve(method, "train")
    known = recipes()
    path = known.get(config, Path(config))
    if not path.is_file():
        raise InputError(f"no recipe {config!r}: {nearest(config, known)} (a YAML file works too)")
    if threads is not None:
        if threads < 1:
            raise OptionError(f"threads={threads} must be at least 1")
        import torch

        torch.set_num_threads(threads)
    recipe = training.recipe_type.read(path, method=training.method)
    folder = out or Path("runs") / path.stem
    with process_group() as world:
        training(recipe).run(folder)
        if world.main:
            print(folder / "model")
