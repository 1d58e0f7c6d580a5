"""What `whet generate` does: read prompts, decode them, write each text as it is done."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from whet._io import write_json
from whet.cli._common import progress
from whet.cli._live import CanvasLive, visible
from whet.dlm.options import DecodeOptions
from whet.dlm.texts import (
    Completion,
    TextRequest,
    encode_gaps,
    encode_prompt,
    generate_texts,
    stream_texts,
)
from whet.errors import InputError, OptionError
from whet.evaluate.autoregressive import AutoregressiveModel
from whet.evaluate.model import Generation, GenerationRequest
from whet.models.chat import chat_prompt
from whet.models.denoiser import Denoiser
from whet.models.registry import is_autoregressive


@dataclass(frozen=True)
class Line:
    """A prompt, its name, and the number that keys its noise; or why it cannot be used.

    gen_length: positions to fill, where the line says so itself.
    """

    id: str
    prompt: str
    request: int
    problem: str | None = None
    gen_length: int | None = None


def read_prompts(arguments: Sequence[str], source: Path | None, output: Path | None) -> list[Line]:
    """Prompts from arguments, a JSONL file or stdin, less those that `output` already holds.

    A broken line of a JSONL file keeps its place and carries its problem.
    Errors: InputError where there is nothing to read, or two sources are given.
    """
    if arguments and source is not None:
        raise InputError("give prompts as arguments or with --input, not both")
    if arguments:
        lines = [Line(str(i), text, i) for i, text in enumerate(arguments)]
    elif source is not None:
        try:
            text = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {source}: {error}") from error
        lines = [_parse(n, t) for n, t in enumerate(text.split("\n"), 1) if t.strip()]
    else:
        lines = [Line(str(i), t.rstrip("\n"), i) for i, t in enumerate(sys.stdin) if t.strip()]
    if not lines:
        raise InputError("no prompt: give one as an argument, on stdin or with --input FILE.jsonl")
    named: dict[str, int] = {}
    for line in lines:
        if line.id in named and line.problem is None:
            raise InputError(
                f"lines {named[line.id] + 1} and {line.request + 1} share the id {line.id!r}: "
                "ids must differ"
            )
        named[line.id] = line.request
    finished = _finished(output)
    for line in lines:
        if line.problem is None and finished.get(line.id, line.prompt) != line.prompt:
            raise InputError(
                f"{output} holds another prompt under the id {line.id!r}: use another --output"
            )
    return [line for line in lines if line.id not in finished]


def read_whole(source: Path) -> list[Line]:
    """Prompts of a JSONL file without a broken line. Errors: InputError."""
    lines = read_prompts((), source, None)
    for line in lines:
        if line.problem is not None:
            raise InputError(f"{source}: {line.problem}")
    return lines


def _parse(number: int, text: str) -> Line:
    request = number - 1
    try:
        value = json_module.loads(text)
    except ValueError:
        return Line(str(request), "", request, f"line {number} is not JSON")
    if not isinstance(value, dict) or not isinstance(value.get("prompt"), str):
        return Line(str(request), "", request, f'line {number} has no text under "prompt"')
    length = value.get("gen_length")
    problem = None
    if length is not None and (not isinstance(length, int) or length < 1):
        problem = f"line {number}: gen_length={length!r} must be a whole number above 0"
    return Line(str(value.get("id", request)), value["prompt"], request, problem, length)


def _finished(output: Path | None) -> dict[str, str]:
    """Ids and prompts already written; a half-written last line (a kill) is left out."""
    if output is None or not output.is_file():
        return {}
    try:
        text = output.read_text(encoding="utf-8")
        done = [json_module.loads(line) for line in _whole(text).split("\n") if line.strip()]
        found = {str(value["id"]): str(value["prompt"]) for value in done}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{output} exists and is no output of `whet generate`") from error
    if not text.startswith(_START[: len(text)]):
        raise InputError(f"{output} exists and is no output of `whet generate`")
    return found


_START = '{"id": '


def _whole(text: str) -> str:
    """What comes before a half-written last line."""
    return text[: text.rfind("\n") + 1]


@dataclass
class Job:
    """One run of the verb. A finished text leaves the batch, goes to disk, and another prompt takes
    its place; on the screen texts keep the order of their prompts."""

    model: Any
    tokenizer: Any
    options: DecodeOptions
    gen_length: int
    batch_size: int
    chat: bool
    infill: bool
    output: Path | None
    trace: Path | None
    live: bool | None
    delay: float
    json: bool
    traces: list[dict[str, Any]] = field(default_factory=list)
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def run(self, lines: Sequence[Line]) -> None:
        """Decode every usable line; report the others at the end.

        Errors: InputError naming unusable lines, after the rest is done; where nothing else than
        one bad prompt was asked for, its problem is the error.
        """
        if is_autoregressive(self.model):
            self._refuse_canvas_flags()
            usable, problems = self._fitting(lines)
        else:
            usable, problems = self._check(lines, Denoiser.of(self.model, self.tokenizer))
        sink = self._open()
        try:
            if is_autoregressive(self.model):
                self._continue(usable, sink)
                return
            live = self.console.is_terminal and sink is None if self.live is None else self.live
            if live and not self.infill:
                self._watch(usable, sink)
            else:
                self._stream(usable, sink)
        finally:
            if sink is not None:
                with contextlib.suppress(OSError):  # a full disk has been reported by then
                    sink.close()
            if self.trace is not None and self.traces:
                write_json(self.trace, self.traces)
            if problems and sys.exc_info()[0] is None:
                raise InputError("; ".join(problems))

    # --- autoregressive models

    def _refuse_canvas_flags(self) -> None:
        for name, value in (("infill", self.infill), ("trace", self.trace), ("live", self.live)):
            if value:
                raise OptionError(
                    f"--{name} needs a canvas: {self.model.config.model_type} models write left to "
                    "right"
                )

    def _fitting(self, lines: Sequence[Line]) -> tuple[list[Line], list[str]]:
        under_test = self._under_test()
        usable, problems = [], []
        for line in lines:
            need = under_test.count_tokens(self._chatted(line.prompt))
            need += line.gen_length or self.gen_length
            problem = line.problem
            if problem is None and need > under_test.context_length:
                problem = (
                    f"line {line.request + 1}: prompt and gen_length need {need} tokens, the "
                    f"model's context is {under_test.context_length}"
                )
            if problem is None:
                usable.append(line)
            else:
                problems.append(problem)
        return usable, problems

    def _under_test(self) -> AutoregressiveModel:
        return AutoregressiveModel(
            self.model,
            self.tokenizer,
            name="model",
            batch_size=self.batch_size,
            seed=self.options.seed,
        )

    def _continue(self, lines: list[Line], sink: IO[str] | None) -> None:
        """Batch by batch; on the screen in the order of the prompts."""
        asked = [
            GenerationRequest(
                prompt=self._chatted(line.prompt),
                max_new_tokens=line.gen_length or self.gen_length,
                temperature=self.options.temperature,
                request=line.request,
            )
            for line in lines
        ]
        waiting: dict[int, Generation] = {}
        shown = 0
        with progress("generate", len(lines)) as done:
            for count, (index, made) in enumerate(self._under_test().generate(asked), 1):
                waiting[index] = made
                order = [index] if sink is not None else range(shown, len(lines))
                for place in order:
                    if place not in waiting:
                        break
                    text = waiting.pop(place)
                    steps = int(text.forwards or 0)
                    self._write(lines[place], text.text, steps, steps, sink)
                    shown += 1
                self._sync(sink)
                done(count)

    def _chatted(self, prompt: str) -> str:
        return chat_prompt(self.tokenizer, prompt) if self.chat else prompt

    # --- diffusion models

    def _check(self, lines: Sequence[Line], denoiser: Denoiser) -> tuple[list[Line], list[str]]:
        usable, problems = [], []
        for line in lines:
            problem = line.problem
            if problem is None:
                try:
                    if self.infill:
                        encode_gaps(denoiser, self.tokenizer, line.prompt)
                    else:
                        length = line.gen_length or self.gen_length
                        encode_prompt(denoiser, self.tokenizer, line.prompt, length, chat=self.chat)
                except InputError as error:
                    problem = f"line {line.request + 1}: {error}" if len(lines) > 1 else str(error)
            if problem is None:
                usable.append(line)
            else:
                problems.append(problem)
        return usable, problems

    def _open(self) -> IO[str] | None:
        if self.output is None:
            return None
        try:
            self.output.parent.mkdir(parents=True, exist_ok=True)
            if self.output.is_file():  # a kill may have cut the last line short: do it again
                text = self.output.read_text(encoding="utf-8")
                os.truncate(self.output, len(_whole(text).encode()))
            return self.output.open("a", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {self.output}: {error.strerror}") from error

    def _stream(self, lines: list[Line], sink: IO[str] | None) -> None:
        asked = (
            TextRequest(line.prompt, line.gen_length or self.gen_length, line.request, self.infill)
            for line in lines
        )
        finished = stream_texts(
            self.model,
            self.tokenizer,
            asked,
            options=self.options,
            batch_size=self.batch_size,
            chat=self.chat,
        )
        waiting: dict[int, Completion] = {}
        shown = 0
        with progress("infill" if self.infill else "generate", len(lines)) as done:
            for count, (index, completion) in enumerate(finished, 1):
                if sink is not None:
                    self._emit(lines[index], completion, sink)
                    self._sync(sink)
                else:  # on the screen, in order
                    waiting[index] = completion
                    while shown in waiting:
                        self._emit(lines[shown], waiting.pop(shown), None)
                        shown += 1
                done(count)

    def _watch(self, lines: list[Line], sink: IO[str] | None) -> None:
        """Fixed batches whose canvases are drawn after every step."""
        view = CanvasLive(
            self.console, self.tokenizer, gen_length=self.gen_length, delay=self.delay
        )
        size = max(1, self.batch_size)
        with view:
            for k in range(0, len(lines), size):
                batch = lines[k : k + size]
                watch = view.watch([line.id for line in batch], [p.prompt for p in batch])
                texts = generate_texts(
                    self.model,
                    self.tokenizer,
                    [line.prompt for line in batch],
                    options=self.options,
                    gen_length=self.gen_length,
                    batch_size=self.batch_size,
                    chat=self.chat,
                    requests=[line.request for line in batch],
                    on_commit=watch,
                )
                for line, completion in zip(batch, list(texts), strict=True):
                    self._emit(line, completion, sink)
                self._sync(sink)

    def _emit(self, line: Line, completion: Completion, sink: IO[str] | None) -> None:
        if self.trace is not None and completion.trace is not None:
            texts = [visible(self.tokenizer, t) for t in completion.tokens]
            detail = completion.trace.as_json(completion.index, completion.tokens, texts)
            self.traces.append({"id": line.id, "prompt": line.prompt, **detail})
        self._write(line, completion.text, completion.steps, completion.rows, sink)

    def _write(self, line: Line, text: str, steps: int, rows: int, sink: IO[str] | None) -> None:
        value = {"id": line.id, "prompt": line.prompt, "text": text, "steps": steps, "rows": rows}
        encoded = json_module.dumps(value, ensure_ascii=False) + "\n"
        if sink is not None:
            with self._explained():
                sink.write(encoded)
        elif self.json:
            sys.stdout.write(encoded)
        else:
            sys.stdout.write(text + "\n")

    def _sync(self, sink: IO[str] | None) -> None:
        if sink is not None:
            with self._explained():
                sink.flush()
                os.fsync(sink.fileno())

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {self.output}: {error.strerror}; lines before are kept, "
                "the same command goes on where it stopped"
            ) from error
