"""Options that several verbs share, and small helpers for the screen."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from whet.dlm.options import DecodeOptions

_QUIET_SECONDS = 30.0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class HardwareFlags:
    """Where and how to hold a model."""

    device: Annotated[str, Parameter(help="cpu or cuda.")] = "cpu"
    dtype: Annotated[str, Parameter(help="auto, float32, float64, bfloat16 or float16.")] = "auto"

    def check(self) -> Any:
        """The torch dtype (or "auto"). Errors: OptionError for a device that cannot be used."""
        import torch

        from whet.errors import OptionError
        from whet.models.loading import check_dtype

        dtype = check_dtype(self.dtype)
        try:
            # float64: scores of beams are kept in it (Apple's mps has none).
            torch.empty(0, device=self.device, dtype=torch.float64)
        except (RuntimeError, AssertionError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise OptionError(f"device={self.device!r} cannot be used: {reason}") from error
        quiet_transformers()
        return dtype


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ModelFlags(HardwareFlags):
    """Which model, and how to hold it."""

    model: Annotated[str, Parameter(help="Zoo name, directory or hub name.")] = "tiny-dlm"

    def load(self) -> tuple[Any, Any]:
        """Model and tokenizer. Errors: those of `whet.load`."""
        import whet

        return whet.load(self.model, dtype=self.check(), device=self.device)

    def load_other(self, name: str) -> tuple[Any, Any]:
        """Another model, held the same way."""
        return dataclasses.replace(self, model=name).load()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DecoderFlags:
    """A decoder and its settings; a flag that the decoder does not have is an error."""

    decoder: Annotated[
        str | None,
        Parameter(
            help="NAME or NAME:key=value,… (default: low-confidence); `whet methods` lists them."
        ),
    ] = None
    block_length: Annotated[int | None, Parameter(help="Positions per window.")] = None
    steps: Annotated[int | None, Parameter(help="Forwards in all (rules with a schedule).")] = None
    threshold: Annotated[float | None, Parameter(help="Confidence that counts as sure.")] = None
    beam_width: Annotated[int | None, Parameter(help="Hypotheses kept (soar, pbs).")] = None
    max_parallel: Annotated[int | None, Parameter(help="Most tokens per step (soar).")] = None
    min_parallel: Annotated[int | None, Parameter(help="Sure tokens to accelerate (soar).")] = None
    score: Annotated[str | None, Parameter(help="mean or sum (soar, pbs).")] = None
    variant: Annotated[str | None, Parameter(help="paper, llada or dream (soar).")] = None
    confidence: Annotated[str | None, Parameter(help="prob, margin or neg_entropy.")] = None
    temperature: Annotated[float | None, Parameter(help="0 takes the most likely token.")] = None
    top_p: Annotated[float | None, Parameter(help="Sample within this probability mass.")] = None
    top_k: Annotated[int | None, Parameter(help="Sample among the best K tokens.")] = None
    cfg_scale: Annotated[float | None, Parameter(help="Guidance; 0 is off.")] = None
    smooth: Annotated[float | None, Parameter(help="IterSmooth weight (0.3); 0 is off.")] = None
    eos: Annotated[str | None, Parameter(help="none, suppress, defer or early_stop.")] = None
    cache: Annotated[str | None, Parameter(help="none, prefix, dual or block.")] = None
    refresh_interval: Annotated[int | None, Parameter(help="Steps between refreshes.")] = None
    vicinity: Annotated[int | None, Parameter(help="Columns fed beside the window.")] = None
    softmax: Annotated[str | None, Parameter(help="float32 or float64.")] = None
    seed: Annotated[int | None, Parameter(help="Of all noise.")] = None

    def options(self) -> DecodeOptions:
        """The decoder's options. Errors: OptionError as in `decoder_options`."""
        from whet.dlm.decoders import decoder_options

        return decoder_options(self.decoder or "low-confidence", self.given())

    def given(self) -> dict[str, str]:
        """The settings that were given as flags."""
        return {
            f.name: str(value)
            for f in dataclasses.fields(self)
            if f.name != "decoder" and (value := getattr(self, f.name)) is not None
        }

    def refuse_canvas(self, name: str) -> None:
        """Errors: OptionError where a flag was given that means nothing to model `name`, which
        writes left to right."""
        from whet.errors import OptionError

        given = [*(["decoder"] if self.decoder else []), *sorted(self.given())]
        unfit = [f"--{g.replace('_', '-')}" for g in given if g not in ("temperature", "seed")]
        if unfit:
            raise OptionError(
                f"{', '.join(unfit)}: {name} is autoregressive, decoders fill canvases of "
                "diffusion models"
            )

    @property
    def chain(self) -> str:
        """The decoder in the naming grammar, flags included."""
        from whet.spec import Spec

        spec = Spec.parse(self.decoder or "low-confidence")
        return str(Spec(spec.name, spec.suite, {**spec.settings, **self.given()}))


def quiet_transformers() -> None:
    """No progress bars and advice from transformers between our own lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress on stderr: a bar on a terminal, a line every half minute elsewhere.

    Call the yielded function with how much is done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        last = time.monotonic()

        def tell(done: int) -> None:
            nonlocal last
            if time.monotonic() - last > _QUIET_SECONDS:
                last = time.monotonic()
                console.print(f"{label} {done}/{total}")

        yield tell
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # A redirected stdout stays what it is; on a terminal both go through the same console.
    both = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=both) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)
