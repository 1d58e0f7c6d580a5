"""What `whet evaluate` does: draw problems, let every model answer, judge, show, keep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from whet._io import check_writable
from whet.bench.evaluation import (
    Answered,
    Draw,
    answer,
    evaluation_record,
    fingerprint,
    judged_again,
    log_name,
    skipped_note,
)
from whet.cli._common import DecoderFlags, HardwareFlags, progress
from whet.errors import InputError, OptionError
from whet.evaluate.file_tasks import is_static
from whet.evaluate.model import EvalModel
from whet.evaluate.run import AnswerLog, Budget
from whet.evaluate.runner import cell_name
from whet.measure.record import Level, Record, save
from whet.models.chat import chat_prompt
from whet.report.tables import arms_table, breakdown_tables, comparisons_table, print_table, show

_DEFAULT_PROBLEMS = 400
_WINDOW = 2048
_NAME = "evaluate"
_VARIATIONS = "accuracy by variation"


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """One run of the verb; the fields are its flags."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    sizes: str | None
    mode: str | None
    n: int | None
    limit: int | None
    gen_length: int | None
    reasoning: float | None
    shots: int | None
    chat: bool
    batch_size: int
    endpoint: str | None
    data: Path | None
    allow_unsandboxed_code: bool
    problem_seed: int | None
    out: Path | None
    hardware: HardwareFlags
    decoder_flags: DecoderFlags
    json: bool

    def run(
        self,
        *,
        listing: bool,
        replay: Sequence[Path],
        perplexity: Sequence[Path],
        window: int | None,
    ) -> None:
        """Do what the flags ask for. Errors: OptionError and InputError in one sentence."""
        if self.out is not None:
            check_writable(self.out)
        if replay:
            self._show(*self._judged_again(replay))
        elif perplexity:
            self._perplexity(perplexity, window)
        elif listing:
            self._list()
        else:
            self._show(*self._answered())

    # --- the parts of a run

    @property
    def draw(self) -> Draw:
        """The problems that the flags describe."""
        static = any(map(is_static, self.tasks))
        n = self.n
        if n is None and self.limit is None and not static:
            n = _DEFAULT_PROBLEMS
        seed = self.problem_seed if self.problem_seed is not None else self.decoder_flags.seed
        return Draw(
            tasks=self.tasks,
            sizes=parse_sizes(self.sizes),
            mode=self.mode,
            n=n,
            limit=self.limit,
            seed=seed or 0,
            data=str(self.data) if self.data is not None else None,
            shots=self.shots,
        )

    @property
    def budget(self) -> Budget:
        """What an answer may cost."""
        return Budget(
            max_new_tokens=self.gen_length,
            reasoning=self.reasoning,
            temperature=self.decoder_flags.temperature or 0.0,
        )

    def _answered(self) -> tuple[list[Answered], Draw, list[str]]:
        draw, budget = self.draw, self.budget
        if len(set(self.models)) < len(self.models):
            raise OptionError(f"models are named twice: {', '.join(self.models)}")
        self._check_folder()
        asked, notes = draw.problems(allow_unsandboxed=self.allow_unsandboxed_code)
        for note in notes:
            print(note, file=sys.stderr)
        answered = []
        for name in self.models:
            model, chain = self._model(name)
            log = self._log(name, chain, draw)
            with progress(name, len(asked)) as done:
                made = answer(
                    model,
                    asked,
                    chain=chain,
                    budget=budget,
                    shots=self.shots or 0,
                    seed=draw.seed,
                    chat=self._chat(model),
                    log=log,
                    on_done=done,
                )
            answered.append(made)
            if note := skipped_note(made):
                print(note, file=sys.stderr)
        return answered, draw, notes

    def _model(self, name: str) -> tuple[EvalModel, str]:
        """The model under test and the chain that a record gives for it."""
        flags = self.decoder_flags
        if self.endpoint is not None:
            from whet.evaluate.endpoint import EndpointModel, check_reachable

            if flags.decoder is not None:
                raise OptionError("--decoder does not reach a model behind an endpoint")
            check_reachable(self.endpoint)
            return EndpointModel(self.endpoint, name, seed=flags.seed), f"endpoint:{name}"
        import whet
        from whet.bench.eval_models import wrap_model
        from whet.models.registry import is_autoregressive

        loaded, tokenizer = whet.load(
            name, dtype=self.hardware.check(), device=self.hardware.device
        )
        common: dict[str, Any] = {"name": name, "batch_size": self.batch_size}
        common["seed"] = flags.seed or 0
        if is_autoregressive(loaded):
            # With several models, the decoder is for those that have one.
            if len(self.models) == 1:
                flags.refuse_canvas(name)
            return wrap_model(loaded, tokenizer, **common), "autoregressive"
        options = flags.options()
        return wrap_model(loaded, tokenizer, decoder=options, **common), flags.chain

    def _chat(self, model: EvalModel) -> Callable[[str], str] | None:
        if not self.chat:
            return None
        codec = getattr(model, "codec", None)
        if codec is None:
            raise OptionError(f"{model.name} applies its own chat template: leave --chat off")
        chat_prompt(codec.tokenizer, "")  # says now that there is no template, not at a problem
        return partial(chat_prompt, codec.tokenizer)

    def _check_folder(self) -> None:
        """Errors: InputError where the record of another model would be written over."""
        if self.out is None:
            return
        own = {log_name(name) for name in self.models}
        others = sorted(p.name for p in self.out.glob("answers-*.jsonl") if p.name not in own)
        if others:
            raise InputError(
                f"{self.out / others[0]} holds answers of another model: name that model too, "
                "or use another --out"
            )

    def _log(self, name: str, chain: str, draw: Draw) -> AnswerLog | None:
        if self.out is None:
            return None
        identity = {
            "model": name,
            "files": fingerprint(name),
            "endpoint": self.endpoint or "",
            "chain": chain,
            "problems": draw.as_settings(),
            "gen_length": self.gen_length,
            "reasoning": self.reasoning,
            "shots": self.shots,
            "chat": self.chat,
            "temperature": self.decoder_flags.temperature or 0.0,
            "seed": self.decoder_flags.seed,
            "dtype": self.hardware.dtype,
        }
        return AnswerLog.open(self.out / log_name(name), identity)

    def _judged_again(self, logs: Sequence[Path]) -> tuple[list[Answered], Draw, list[str]]:
        answered, draw = judged_again(logs, allow_unsandboxed=self.allow_unsandboxed_code)
        for note in filter(None, map(skipped_note, answered)):
            print(note, file=sys.stderr)
        return answered, draw, [f"judged again from {', '.join(map(str, logs))}"]

    @property
    def _level(self) -> Level:
        return "cpu" if self.hardware.device == "cpu" else "gpu"

    # --- what people see

    def _show(self, answered: list[Answered], draw: Draw, notes: list[str]) -> None:
        record = evaluation_record(
            answered, draw, folder=self.out, level=self._level, notes=notes, name=_NAME
        )
        if self.json:
            sys.stdout.write(record.model_dump_json(indent=1) + "\n")
        else:
            print_table(arms_table(record))
            # Sizes and variations are pictures on the page; cells say both.
            for table in breakdown_tables(record, without=("accuracy by size", _VARIATIONS)):
                print_table(table)
            if record.comparisons:
                print_table(comparisons_table(record))
        if self.out is not None:
            self._keep(record)

    def _keep(self, record: Record) -> None:
        from whet.report.page import write_page
        from whet.report.pages import from_folder

        assert self.out is not None
        path = self.out / f"{_NAME}.json"
        save(record, path)
        page = path.with_suffix(".html")
        write_page(page, from_folder(path, title=record.title))
        if not self.json:
            print(f"record: {path}, report page: {page}")

    def _list(self) -> None:
        from whet.tasks.registry import select

        chosen = select(self.tasks, sizes=parse_sizes(self.sizes), mode=self.mode)
        rows = [
            {
                "cell": cell_name(task),
                "mode": getattr(task, "mode", ""),
                "log10_space": round(task.log10_space(), 2),
                "answers": "many" if task.many_answers else "one",
            }
            for task in chosen.tasks
        ]
        headings = {"cell": "task/variation", "mode": "mode", "log10_space": "log10 of space"}
        show(f"{len(rows)} cells", {**headings, "answers": "valid answers"}, rows, json=self.json)
        for note in chosen.notes:
            print(note, file=sys.stderr)

    def _perplexity(self, paths: Sequence[Path], window: int | None) -> None:
        """A row per model and text; with --out a record too."""
        from whet.bench.evaluation import perplexity_record
        from whet.evaluate.autoregressive import AutoregressiveModel
        from whet.evaluate.diffusion import DiffusionModel
        from whet.evaluate.perplexity import Perplexity, file_perplexity

        found: dict[str, list[Perplexity]] = {}
        for name in self.models:
            model, _ = self._model(name)
            if not isinstance(model, (AutoregressiveModel, DiffusionModel)):
                raise OptionError(f"{name}: perplexity needs the model itself, not an endpoint")
            size = window if window is not None else min(_WINDOW, model.context_length)
            with progress(f"perplexity {name}", len(paths)) as done:
                for path in paths:
                    found.setdefault(name, []).append(file_perplexity(model, path, window=size))
                    done(len(found[name]))
        rows = [
            {"model": name, **asdict(value)} for name, values in found.items() for value in values
        ]
        for row in rows:
            row["kind"] = "upper bound" if row["bound"] else "perplexity"
        columns = {"model": "model", "file": "file", "value": "perplexity", "error": "± (MC)"}
        columns |= {"kind": "kind", "window": "window", "windows": "windows"}
        show("Perplexity per token", columns, rows, json=self.json)
        if not self.json:
            for reason in dict.fromkeys(f"{row['file']}: {row['reason']}" for row in rows):
                print(reason)
        if self.out is not None:
            seed = self.decoder_flags.seed or 0
            self._keep(perplexity_record(found, level=self._level, seed=seed))


def parse_sizes(text: str | None) -> tuple[int, ...]:
    """Sizes from "8,16". Errors: OptionError for anything that is no whole number."""
    if text is None:
        return ()
    parts = [p.strip() for p in text.split(",")]
    wrong = [p for p in parts if not p.isdecimal() or len(p) > 6]
    if wrong:
        raise OptionError(f"sizes={text!r}: {wrong[0]!r} is no whole number, write sizes as 8,16")
    return tuple(dict.fromkeys(map(int, parts)))
