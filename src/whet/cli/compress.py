"""`whet compress MODEL --step …`: a chain of methods, the smaller model, and what it cost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(
    name="compress",
    help_epilogue=(
        "Example: `whet compress tiny-ar --step gptq:bits=4,group_size=32 --data tasks:scratchpad "
        "--out runs/tiny-ar-w4`"
    ),
)


@app.default
def compress(
    model: str,
    *,
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder of the result: checkpoint, report.json, page "
            "(default: runs/MODEL-compressed)."
        ),
    ] = None,
    step: Annotated[
        list[str] | None,
        Parameter(
            help="NAME or NAME:key=value,…; several in the order depth, width, factorize, "
            "heal, transform, quantize."
        ),
    ] = None,
    recipe: Annotated[
        str | None, Parameter(help="Steps and data from a YAML file, or a recipe in the package.")
    ] = None,
    data: Annotated[
        str | None, Parameter(help="Calibration: a text file, or tasks:NAME (tasks:scratchpad).")
    ] = None,
    count: Annotated[int | None, Parameter(help="Rows of calibration (default: 128).")] = None,
    length: Annotated[
        int | None,
        Parameter(help="Tokens of a row at most (default: the model's context, 2,048 at most)."),
    ] = None,
    batch_size: Annotated[int | None, Parameter(help="Rows read together (default: 8).")] = None,
    seed: Annotated[int | None, Parameter(help="Of calibration and methods (default: 0).")] = None,
    eval_: Annotated[
        str | None,
        Parameter(
            name="--eval",
            help="Measure quality on a text file, tasks:NAME or sts15 (default: test problems of "
            "the same tasks, or the last tenth of the text, which calibration leaves out).",
        ),
    ] = None,
    sts: Annotated[Path | None, Parameter(help="Folder of the STS 2015 files.")] = None,
    n: Annotated[int, Parameter(help="Problems to measure on.")] = 210,
    measure: Annotated[bool, Parameter(help="Measure both models; off saves their time.")] = True,
    dry_run: Annotated[bool, Parameter(help="Say what would be done, read no weights.")] = False,
    max_memory: Annotated[
        str | None, Parameter(help="As 2GB: stream the weights, a block at a time.")
    ] = None,
    device: Annotated[str, Parameter(help="Where blocks are run: cpu or cuda.")] = "cpu",
    json: Annotated[bool, Parameter(help="Print JSON instead of tables.")] = False,
) -> None:
    """Compress a model by a chain of methods; the result is reloaded before it is kept.

    A killed run goes on with the same command. The record beside the result compares both models
    in size, speed, memory and quality.

    Parameters
    ----------
    model
        Zoo name, directory or hub name of a language model or encoder.
    """
    # compressed-tensors shows bars of its own when packed weights are loaded.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from whet.cli._compress import CompressJob

    CompressJob(
        model=model,
        out=out or Path("runs") / f"{Path(model).name}-compressed",
        steps=tuple(step or ()),
        recipe=recipe,
        data=data,
        count=count,
        length=length,
        batch_size=batch_size,
        seed=seed,
        evaluation=eval_,
        sts=sts,
        n=n,
        measure=measure,
        max_memory=max_memory,
        device=device,
        json=json,
    ).run(dry=dry_run)
