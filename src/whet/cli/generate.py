"""`whet generate`: text from arguments, stdin or JSONL, with any decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from whet.cli._common import DecoderFlags, ModelFlags

app = App(
    name="generate",
    help_epilogue=(
        'Example: `whet generate --decoder soar --threshold 0.9 "queens .5...8..3="`, or '
        "`whet generate --input prompts.jsonl --output texts.jsonl`"
    ),
)


@app.default
def generate(
    *prompts: str,
    gen_length: Annotated[
        int | None,
        Parameter(
            name=["--gen-length", "--max-new-tokens"],
            help="Tokens to write (default: 16; autoregressive models: at most 128).",
        ),
    ] = None,
    batch_size: Annotated[int, Parameter(help="Prompts decoded together.")] = 32,
    chat: Annotated[bool, Parameter(help="Wrap prompts in the chat template.")] = False,
    infill: Annotated[
        bool, Parameter(help="Prompts hold mask tokens to fill; all else stays.")
    ] = False,
    input_: Annotated[
        Path | None,
        Parameter(name="--input", help='JSONL with {"prompt": …} lines; "id", "gen_length" too.'),
    ] = None,
    output: Annotated[
        Path | None, Parameter(help="JSONL to append to; prompts already in it are skipped.")
    ] = None,
    trace: Annotated[
        Path | None, Parameter(help="Write what each step committed, as JSON.")
    ] = None,
    live: Annotated[
        bool | None, Parameter(help="Watch canvases fill in (default: on a terminal).")
    ] = None,
    delay: Annotated[float, Parameter(help="Seconds between the steps of the live view.")] = 0.05,
    json: Annotated[bool, Parameter(help="Print a JSON line per prompt.")] = False,
    model_flags: ModelFlags = ModelFlags(),  # noqa: B008 - frozen
    decoder_flags: DecoderFlags = DecoderFlags(),  # noqa: B008 - frozen
) -> None:
    """Continue prompts with a diffusion LM and any decoder, or with an autoregressive LM.

    Without prompts, lines are read from stdin.

    Parameters
    ----------
    prompts
        Texts to continue (or to fill, with --infill).
    """
    from whet.cli._generate import Job, read_prompts
    from whet.models.registry import is_autoregressive

    options = decoder_flags.options()
    lines = read_prompts(prompts, input_, output)
    model, tokenizer = model_flags.load()
    if is_autoregressive(model):
        decoder_flags.refuse_canvas(model_flags.model)
        gen_length = 128 if gen_length is None else gen_length
    Job(
        model=model,
        tokenizer=tokenizer,
        options=options,
        gen_length=16 if gen_length is None else gen_length,
        batch_size=batch_size,
        chat=chat,
        infill=infill,
        output=output,
        trace=trace,
        live=live,
        delay=delay,
        json=json,
    ).run(lines)
