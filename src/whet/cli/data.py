"""`whet data NAME`: build training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from whet.cli._common import DecoderFlags, ModelFlags, progress

app = App(
    name="data",
    help="Build training data: Arrow shards, resumable, judged by the tasks' checkers.",
    help_epilogue=(
        "Example: `whet data trajectories --model tiny-dlm --tasks scratchpad --n 4000 --out D`"
    ),
)
app.command("whet.cli._data_nap:app", name="nap", help="Sets of independent reasoning paths.")


def parse_part(text: str) -> tuple[int, int]:
    """`K/N` as numbers. Errors: OptionError."""
    from whet.errors import OptionError

    place, slash, parts = text.partition("/")
    if not (slash and place.isdecimal() and parts.isdecimal() and int(place) < int(parts)):
        raise OptionError(f"part={text!r} must be K/N with K from 0 to N-1, as 0/4")
    return int(place), int(parts)


@app.command(help_epilogue="Example: `whet data trajectories --n 4000 --out runs/trajectories`")
def trajectories(
    *,
    out: Annotated[Path, Parameter(help="Folder of Arrow shards; what is there is kept.")],
    tasks: Annotated[
        list[str] | None,
        Parameter(help="Tasks or suites (default: scratchpad).", consume_multiple=True),
    ] = None,
    n: Annotated[int, Parameter(help="Problems, spread over the tasks.")] = 1000,
    input_: Annotated[
        Path | None,
        Parameter(name="--input", help='JSONL with {"prompt": …} lines instead of tasks.'),
    ] = None,
    gen_length: Annotated[int, Parameter(help="Positions to fill.")] = 16,
    batch_size: Annotated[int, Parameter(help="Prompts decoded together.")] = 64,
    chat: Annotated[bool, Parameter(help="Wrap prompts in the chat template.")] = False,
    problem_seed: Annotated[int, Parameter(help="Seed of the problems.")] = 0,
    shard_size: Annotated[int, Parameter(help="Prompts per shard.")] = 1024,
    part: Annotated[str, Parameter(help="K/N: make only every N-th shard from the K-th.")] = "0/1",
    model_flags: ModelFlags = ModelFlags(),  # noqa: B008 - frozen
    decoder_flags: DecoderFlags = DecoderFlags(),  # noqa: B008 - frozen
) -> None:
    """Record a diffusion LM's own decodings: tokens, and the step that committed each.

    Problems are of the training split and answers are judged. The same command goes on with what
    is missing.
    """
    from whet._io import check_writable
    from whet.cli._generate import read_whole
    from whet.data.trajectories import Trajectories
    from whet.dlm.record import Asked, ask_tasks, record_prompts
    from whet.errors import OptionError
    from whet.models.registry import is_autoregressive
    from whet.tasks import expand

    options, share = decoder_flags.options(), parse_part(part)
    if input_ is not None and tasks is not None:
        raise OptionError("give --tasks or --input, not both")
    check_writable(out)
    if input_ is not None:
        asked = [Asked(str(input_), line.prompt) for line in read_whole(input_)]
    else:
        asked = ask_tasks(expand(tasks or ["scratchpad"]), n, seed=problem_seed)
    model, tokenizer = model_flags.load()
    if is_autoregressive(model):
        decoder_flags.refuse_canvas(model_flags.model)
        raise OptionError(f"{model_flags.model} is autoregressive: it fills no canvas")
    with progress("trajectories", len(asked)) as done:
        record_prompts(
            model,
            tokenizer,
            asked,
            folder=out,
            identity={"model": model_flags.model},
            options=options,
            gen_length=gen_length,
            batch_size=batch_size,
            chat=chat,
            shard_size=shard_size,
            part=share,
            on_progress=done,
        )
    if share[1] > 1:
        print(out)
        return
    found = Trajectories(out)
    judged = [t.correct for t in found if t.correct is not None]
    right = f", {sum(judged)} of {len(judged)} right" if judged else ""
    print(f"{out}: {len(found)} trajectories{right}")
