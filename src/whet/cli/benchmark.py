"""`whet benchmark`: variants side by side in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from whet.cli._common import ModelFlags, progress

app = App(
    name="benchmark",
    help="Variants side by side in one run: quality, forwards, time, memory.",
    help_epilogue=(
        "Example: `whet benchmark decode --model tiny-dlm --n 400`, or "
        "`whet benchmark decode --sweep threshold=0.7,0.9 cache=none,dual block_length=4,16`"
    ),
)


@app.command
def decode(
    *,
    tasks: Annotated[
        list[str] | None,
        Parameter(help="Tasks or suites (default: scratchpad).", consume_multiple=True),
    ] = None,
    decoders: Annotated[
        list[str] | None,
        Parameter(
            help="NAME or NAME:key=value,… each; the first is the baseline (default: greedy, two "
            "tokens per step, thresholds, pbs, soar). The key model names another model.",
            consume_multiple=True,
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        Parameter(
            help="KEY=V1,V2,… each: every combination, in every decoder that has the option.",
            consume_multiple=True,
        ),
    ] = None,
    n: Annotated[int, Parameter(help="Problems in all.")] = 400,
    gen_length: Annotated[int, Parameter(help="Positions to fill.")] = 16,
    batch_size: Annotated[int, Parameter(help="Problems decoded together.")] = 64,
    problem_seed: Annotated[int, Parameter(help="Which problems are drawn.")] = 0,
    watch: Annotated[int, Parameter(help="First show this many problems being solved.")] = 0,
    out: Annotated[Path, Parameter(help="Folder for the record and the page.")] = Path(
        "runs/benchmarks"
    ),
    name: Annotated[str, Parameter(help="Name of the record.")] = "decode",
    model_flags: ModelFlags = ModelFlags(),  # noqa: B008 - frozen
    json: Annotated[bool, Parameter(help="Print the record as JSON.")] = False,
) -> None:
    """Decoders on the same fresh problems: accuracy, forwards, rows, tokens per forward, time.

    Ends with a table and the path of a page with the accuracy-forwards frontier and canvases
    that fill in step by step. Forwards and rows leave out what was spent behind an answer's end;
    tokens/s counts neither prompts nor what lies behind an answer's end.
    """
    from whet.errors import OptionError
    from whet.tasks import expand

    chosen = expand(tasks or ["scratchpad"])
    from whet._io import check_writable
    from whet.bench.decoding import DecoderArm
    from whet.bench.sweep import fitting, parse_axes, sweep_arms
    from whet.cli._benchmark import DecodeBenchmark

    half = max(1, gen_length // 2)
    default = [
        "greedy",
        f"greedy:steps={half}",
        "threshold",
        "threshold:threshold=0.99",
        "pbs",
        "soar",
    ]
    refused: dict[str, str] = {}
    if sweep:
        arms, refused = sweep_arms(decoders or ["greedy", "threshold"], parse_axes(sweep))
    else:
        arms = [DecoderArm.parse(text) for text in decoders or default]
    if n < 2:
        raise OptionError(f"n={n} is too few: intervals need at least 2 problems")
    check_writable(out)
    model, tokenizer = model_flags.load()
    named = dict.fromkeys(arm.model for arm in arms if arm.model is not None)
    others = {name: model_flags.load_other(name) for name in named}
    if sweep:
        arms, unfit = fitting(arms, model, gen_length, others)
        refused |= unfit
    benchmark = DecodeBenchmark(
        model_name=model_flags.model,
        model=model,
        tokenizer=tokenizer,
        tasks=chosen,
        arms=arms,
        n=n,
        gen_length=gen_length,
        batch_size=batch_size,
        problem_seed=problem_seed,
        others=others,
        refused=refused,
        sweep=bool(sweep),
    )
    if watch:
        benchmark.watch(watch)
    with progress("benchmark", n) as done:
        record = benchmark.run(out, name, on_batch=done)
    benchmark.show(record, out, name, json=json)
