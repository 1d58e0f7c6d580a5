"""What `whet compress` does: read the chain, plan it, run it, measure, show, keep."""

from __future__ import annotations

import json as json_module
import re
import sys
import textwrap
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from whet.cli._common import progress, quiet_transformers
from whet.compress.chain import ChainRecipe, Steps, parse_chain, read_recipe
from whet.compress.data import COUNT, parse_source
from whet.compress.plan import Calibrating, Plan, plan
from whet.compress.quality import Quality, guide_of, quality_of, score
from whet.compress.report import compression_record
from whet.compress.run import Compressed, finished, run
from whet.compress.target import Target, open_target
from whet.errors import OptionError
from whet.measure.record import Record, save
from whet.report.compression import compression_table
from whet.report.tables import WIDTH, print_table, show

_HELD_OUT = 0.1
_REPORT = "report.json"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True, kw_only=True)
class CompressJob:
    """One run of the verb; the fields are its flags, None where the recipe or a default says."""

    model: str
    out: Path
    steps: tuple[str, ...]
    recipe: str | None
    data: str | None
    count: int | None
    length: int | None
    batch_size: int | None
    seed: int | None
    evaluation: str | None
    sts: Path | None
    n: int
    measure: bool
    max_memory: str | None
    device: str
    json: bool

    def run(self, *, dry: bool) -> None:
        """Do it. Errors: OptionError, InputError and CheckpointError in one sentence."""
        quiet_transformers()
        recipe = self._recipe()
        chain = recipe.chain() if recipe.steps else parse_chain(())
        source = None if recipe.data is None else parse_source(recipe.data)
        text = isinstance(source, Path)
        calibrating = Calibrating(
            source=source,
            count=recipe.count,
            length=recipe.length,
            batch_size=recipe.batch_size,
            held_out=_HELD_OUT if text and self.evaluation is None else 0.0,
        )
        if self.n < 1:
            raise OptionError(f"n={self.n} must be at least 1")
        memory = None if self.max_memory is None else parse_bytes(self.max_memory)
        device = self._device()
        target = open_target(self.model)
        quality = self._quality(calibrating, target, recipe.seed)
        chosen: dict[str, Any] = {
            "out": self.out,
            "calibrating": calibrating,
            "seed": recipe.seed,
            "max_memory": memory,
        }
        made = None
        if not dry and self.measure and not (self.out / _REPORT).exists():
            made = finished(chain, target, **chosen)  # and then it was interrupted
        if made is None:
            planned = plan(chain, target, **chosen)
            if dry:
                self._show_plan(planned)
                return
            made = self._compress(chain, target, chosen, device)
        if not self.measure:
            print(self.out)
            return
        settings: dict[str, Any] = {
            "data": recipe.data,
            "count": recipe.count,
            "length": calibrating.window(target),
            "max_memory": memory,
            "seconds": {step.step: round(step.seconds, 3) for step in made.steps},
        }
        with progress("measuring", 1):
            record = compression_record(
                target, made, chain, quality=quality, settings=settings, seed=recipe.seed
            )
        self._keep(record)

    def _recipe(self) -> ChainRecipe:
        """The recipe with the flags put over it. Errors: OptionError, InputError."""
        read = None if self.recipe is None else read_recipe(self.recipe)
        if read is not None and self.steps:
            raise OptionError("give --step or --recipe, not both")
        if read is None and not self.steps:
            raise OptionError("a chain needs at least one step: give --step or --recipe")
        given: dict[str, Any] = {
            "data": self.data,
            "count": self.count,
            "length": self.length,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
        given = {key: value for key, value in given.items() if value is not None}
        for name, least in (("count", 1), ("length", 2), ("batch_size", 1)):
            if given.get(name, least) < least:
                raise OptionError(f"{name}={given[name]} must be at least {least}")
        if read is not None:
            return read.model_copy(update=given)
        return ChainRecipe(steps=list(self.steps), **{"count": COUNT, **given})

    def _quality(self, calibrating: Calibrating, target: Target, seed: int) -> Quality | None:
        if not self.measure:
            return None
        source = None if target.kind == "encoder" else calibrating.source
        quality = quality_of(
            self.evaluation,
            source=source,
            held_out=calibrating.held_out,
            window=calibrating.window(target),
            count=self.n,
            sts=self.sts,
            seed=seed,
        )
        if quality is not None:
            quality.check(target)
        return quality

    def _device(self) -> torch.device | None:
        if self.device == "cpu":
            return None
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise OptionError(f"device={self.device!r} cannot be used: {reason}") from error
        return torch.device(self.device)

    def _compress(
        self, chain: Steps, target: Target, chosen: dict[str, Any], device: torch.device | None
    ) -> Compressed:
        calibrating = chosen["calibrating"]
        guide = None
        if target.kind != "encoder":
            guide = guide_of(
                calibrating.source,
                held_out=calibrating.held_out,
                window=calibrating.window(target),
                seed=chosen["seed"],
            )
        with progress("compressing", 1000 * len(chain)) as done:
            return run(
                chain,
                target,
                **chosen,
                device=device,
                evaluate=None if guide is None else partial(score, guide, target),
                on_progress=lambda number, step, share: done(round(1000 * (number + share))),
            )

    # --- what people see

    def _show_plan(self, planned: Plan) -> None:
        rows: list[dict[str, Any]] = [
            {"step": f"{planned.name}, as it is", **asdict(planned.before)}
        ]
        rows += [{"step": p.step, "stage": p.stage, **asdict(p.size)} for p in planned.steps]
        if self.json:
            sys.stdout.write(json_module.dumps({**asdict(planned), "rows": rows}, indent=1) + "\n")
            return
        columns = {
            "step": "after",
            "stage": "stage",
            "parameters": "parameters",
            "weight_bytes": "bytes of weights",
            "flops": "FLOPs per token",
        }
        show("What would be done", columns, rows)
        if planned.tokens:
            seconds = (
                f"{planned.seconds:.1f}" if planned.seconds < 10 else f"{planned.seconds:,.0f}"
            )
            print(
                f"calibration: {planned.tokens:,} tokens; forward passes of {seconds} s at "
                f"{planned.rate / 1e9:.0f} GFLOP/s, as one product runs now;\nsolvers and small "
                "products take their time on top"
            )
        print(f"disk: {planned.disk_bytes:,} bytes at most; nothing was written")

    def _keep(self, record: Record) -> None:
        from whet.report.page import write_page
        from whet.report.pages import from_folder

        path = self.out / _REPORT
        save(record, path)
        write_page(path.with_suffix(".html"), from_folder(path, title=record.title))
        if self.json:
            sys.stdout.write(record.model_dump_json(indent=1) + "\n")
            return
        print_table(compression_table(record))
        for note in record.notes:
            print(textwrap.fill(note, WIDTH, initial_indent="- ", subsequent_indent="  "))
        print(f"{self.out}: the model, {path.name} and {path.stem}.html")


def parse_bytes(text: str) -> int:
    """Bytes from 2GB, 500M, 1.5GiB or a whole number. Errors: OptionError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise OptionError(f"max_memory={text!r} is no size: write it as 2GB or 500MB")
    return size
