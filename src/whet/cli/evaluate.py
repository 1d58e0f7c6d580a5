"""`whet evaluate`: any models on fresh problems with verified answers; perplexity of a text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from whet.cli._common import DecoderFlags, HardwareFlags

app = App(
    name="evaluate",
    help_epilogue=(
        "Example: `whet evaluate --model tiny-ar tiny-dlm --tasks scratchpad --n 210`, or "
        "`whet evaluate --model M --tasks beyondbench:hard --sizes 8,16 --limit 100 --seed 7`"
    ),
)


@app.default
def evaluate(
    *,
    model: Annotated[
        list[str] | None,
        Parameter(
            help="Zoo names, directories or hub names (default: tiny-dlm); the first is the "
            "baseline of comparisons.",
            consume_multiple=True,
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        Parameter(
            help="Tasks or suites: scratchpad (default), beyondbench, beyondbench:easy, …",
            consume_multiple=True,
        ),
    ] = None,
    sizes: Annotated[
        str | None, Parameter(help="Sizes of BeyondBench problems, as 8,16 (default: each task's).")
    ] = None,
    mode: Annotated[
        str | None, Parameter(help="faithful (the paper's draws) or wide (much larger spaces).")
    ] = None,
    n: Annotated[int | None, Parameter(help="Problems in all (default: 400).")] = None,
    limit: Annotated[int | None, Parameter(help="Problems per task, instead of --n.")] = None,
    gen_length: Annotated[
        int | None,
        Parameter(
            name=["--gen-length", "--max-new-tokens"],
            help="Tokens an answer may take (default: what the task's answers need).",
        ),
    ] = None,
    reasoning: Annotated[
        float | None, Parameter(help="Working expected, times the answer's tokens.")
    ] = None,
    shots: Annotated[
        int | None,
        Parameter(help="Solved examples before each problem (default: 0, or the benchmark's)."),
    ] = None,
    chat: Annotated[bool, Parameter(help="Wrap prompts in the chat template.")] = False,
    batch_size: Annotated[int, Parameter(help="Problems decoded together.")] = 64,
    preset: Annotated[
        str | None,
        Parameter(
            help="Settings under which a diffusion LM's paper reports a benchmark, as "
            "llada-8b-instruct:gsm8k-semi-ar; flags given override them."
        ),
    ] = None,
    endpoint: Annotated[
        str | None, Parameter(help="URL of an OpenAI-compatible server that has the models.")
    ] = None,
    data: Annotated[
        Path | None, Parameter(help="Folder of gsm8k, humaneval, … files (or WHET_DATA).")
    ] = None,
    allow_unsandboxed_code: Annotated[
        bool, Parameter(help="Run model code even where it cannot be locked in.")
    ] = False,
    perplexity: Annotated[
        list[Path] | None,
        Parameter(help="Text files: perplexity instead of tasks.", consume_multiple=True),
    ] = None,
    window: Annotated[int | None, Parameter(help="Tokens per window of --perplexity.")] = None,
    problem_seed: Annotated[
        int | None, Parameter(help="Which problems are drawn (default: --seed, else 0).")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(help="Folder for answers, record and page; a killed run goes on from it."),
    ] = None,
    replay: Annotated[
        list[Path] | None,
        Parameter(help="Judge logs of answers again, without a model.", consume_multiple=True),
    ] = None,
    list_: Annotated[
        bool, Parameter(name="--list", help="List tasks, sizes and spaces; run nothing.")
    ] = False,
    hardware: HardwareFlags = HardwareFlags(),  # noqa: B008 - frozen
    decoder_flags: DecoderFlags = DecoderFlags(),  # noqa: B008 - frozen
    json: Annotated[bool, Parameter(help="Print JSON instead of tables.")] = False,
) -> None:
    """Answer fresh problems and check by computation; Wilson intervals at 95 %, paired comparisons.

    Every problem ends in one bucket: correct, wrong, unparsed, truncated, failed, or
    skipped_budget (its answer would not fit; left out of the denominator).
    """
    from whet.cli._evaluate import EvaluateJob

    if preset is not None:
        from whet.tasks.static import get_preset

        known = get_preset(preset)
        tasks = tasks or [known.task]
        gen_length = known.gen_length if gen_length is None else gen_length
        shots = known.num_fewshot if shots is None else shots
        chat = chat or known.chat
        if decoder_flags.decoder is None:
            decoder_flags = dataclasses.replace(decoder_flags, decoder=known.chain)
    EvaluateJob(
        models=tuple(model or ["tiny-dlm"]),
        tasks=tuple(tasks or ["scratchpad"]),
        sizes=sizes,
        mode=mode,
        n=n,
        limit=limit,
        gen_length=gen_length,
        reasoning=reasoning,
        shots=shots,
        chat=chat,
        batch_size=batch_size,
        endpoint=endpoint,
        data=data,
        allow_unsandboxed_code=allow_unsandboxed_code,
        problem_seed=problem_seed,
        out=out,
        hardware=hardware,
        decoder_flags=decoder_flags,
        json=json,
    ).run(
        listing=list_,
        replay=tuple(replay or ()),
        perplexity=tuple(perplexity or ()),
        window=window,
    )
