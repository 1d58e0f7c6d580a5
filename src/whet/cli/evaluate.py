"""`whet evaluate`: accuracy on generated tasks."""

from __future__ import annotations

from typing import Annotated

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
    from whet.tasks import expand

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
    title = f"{model_flags.model}, {decoder_flags.decoder}: valid answers"
    columns = {"task": "task", "n": "n", "correct": "valid", "accuracy": "share"}
    show(title, {**columns, "low": "95 % from", "high": "to"}, rows, json=json)
