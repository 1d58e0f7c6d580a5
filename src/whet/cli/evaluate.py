"""`whet evaluate`: accuracy on generated tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from whet.cli._common import DecoderFlags, ModelFlags, progress

app = App(
    name="evaluate",
    help_epilogue="Example: `whet evaluate --model tiny-dlm --tasks scratchpad --decoder soar`",
)


@app.default
def evaluate(
    *,
    tasks: Annotated[
        list[str] | None,
        Parameter(help="Tasks or suites (default: scratchpad).", consume_multiple=True),
    ] = None,
    n: Annotated[int, Parameter(help="Problems in all.")] = 400,
    gen_length: int = 16,
    batch_size: int = 64,
    problem_seed: Annotated[int, Parameter(help="Which problems are drawn.")] = 0,
    model_flags: ModelFlags = ModelFlags(),  # noqa: B008 - frozen
    decoder_flags: DecoderFlags = DecoderFlags(),  # noqa: B008 - frozen
    record: Annotated[Path | None, Parameter(help="Also write a record here.")] = None,
    json: bool = False,
) -> None:
    """Decode fresh problems and check the answers by computation; Wilson intervals at 95 %.

    Parameters
    ----------
    gen_length
        Positions to fill.
    batch_size
        Problems decoded together.
    json
        Print JSON instead of a table.
    """
    from whet._io import check_writable
    from whet.tasks import expand

    if record is not None:
        check_writable(record.parent)
    chosen = expand(tasks or ["scratchpad"])
    options = decoder_flags.options()
    model, tokenizer = model_flags.load()
    from whet.dlm.texts import generate_texts
    from whet.evaluate import accuracy_rows, draw_problems, judge_texts
    from whet.report.tables import show

    asked = draw_problems(chosen, n, seed=problem_seed)
    texts: list[str] = []
    with progress("evaluate", len(asked)) as done:
        for completion in generate_texts(
            model,
            tokenizer,
            [p.instance.prompt for p in asked],
            options=options,
            gen_length=gen_length,
            batch_size=batch_size,
        ):
            texts.append(completion.text)
            done(len(texts))
    rows = accuracy_rows(judge_texts(asked, texts))
    if record is not None:
        _save(record, rows, model_flags, decoder_flags, problem_seed, gen_length)
    title = f"{model_flags.model}, {decoder_flags.decoder}: valid answers"
    columns = {"task": "task", "n": "n", "correct": "valid", "accuracy": "share"}
    show(title, {**columns, "low": "95 % from", "high": "to"}, rows, json=json)


def _save(
    path: Path,
    rows: list[dict[str, Any]],
    model_flags: ModelFlags,
    decoder_flags: DecoderFlags,
    problem_seed: int,
    gen_length: int,
) -> None:
    from whet.evaluate import accuracy_metrics
    from whet.measure.record import Arm, new_record, save

    metrics = accuracy_metrics(rows)
    arm = Arm(name=model_flags.model, chain=decoder_flags.decoder, metrics=metrics)
    made = new_record(
        "evaluate",
        title=f"Valid answers of {model_flags.model}",
        level="cpu" if model_flags.device == "cpu" else "gpu",
        seeds={"problems": problem_seed},
        settings={"model": model_flags.model, "gen_length": gen_length},
        arms=[arm],
    )
    save(made, path)
