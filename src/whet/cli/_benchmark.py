"""What `whet benchmark decode` does: watch, run, record, and make a page to look at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from whet.bench.decoding import (
    DecoderArm,
    Example,
    Models,
    compare,
    examples,
    item_columns,
    record_arm,
    run_arms,
)
from whet.cli._live import CanvasLive, visible
from whet.dlm.texts import generate_texts
from whet.evaluate import Problem, draw_problems, judge_texts
from whet.measure.items import save_items
from whet.measure.record import Record, new_record, save
from whet.report.canvas import Canvas, CanvasRun
from whet.report.page import render_page, write_page
from whet.report.pages import frontier_of, pareto_sets
from whet.report.tables import arms_table, breakdown_tables, print_table, sweep_table
from whet.tasks import Task

_EXAMPLES = 6
_MOST_CANVASES = 8  # of a sweep's arms; more would make the page heavy
_COSTS = ("forwards", "rows", "seconds")


@dataclass
class DecodeBenchmark:
    """One run of the verb."""

    model_name: str
    model: Any
    tokenizer: Any
    tasks: list[Task]
    arms: list[DecoderArm]
    n: int
    gen_length: int
    batch_size: int
    problem_seed: int
    others: Models = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    sweep: bool = False

    def __post_init__(self) -> None:
        self.asked: list[Problem] = draw_problems(self.tasks, self.n, seed=self.problem_seed)

    def watch(self, count: int) -> None:
        """Show problems being solved by every decoder, one decoder after the other."""
        console = Console(stderr=True, highlight=False)
        console.print("[bold]Fresh problems, decoded side by side[/] (orange unsure, blue sure)")
        view = CanvasLive(console, self.tokenizer, gen_length=self.gen_length, delay=0.06)
        with view:
            for index, problem in enumerate(self.asked[:count]):
                for arm in self.arms:
                    prompt = problem.instance.prompt
                    watch = view.watch([arm.name[:16]], [prompt]) if console.is_terminal else None
                    [done] = generate_texts(
                        *self._model_of(arm),
                        [prompt],
                        options=arm.options,
                        gen_length=self.gen_length,
                        requests=[index],
                        on_commit=watch,
                    )
                    [outcome] = judge_texts([problem], [done.text])
                    mark = "valid" if outcome.correct else "wrong"
                    if watch is not None:
                        view.close(mark)
                        continue
                    console.print(
                        f"{arm.name[:26]:<26} {prompt}{done.text}  {done.steps} steps, {mark}",
                        soft_wrap=True,
                        markup=False,
                    )

    def run(self, out: Path, name: str, *, on_batch: Callable[[int], None]) -> Record:
        """Run all arms, write items and record."""
        results = run_arms(
            self.model,
            self.tokenizer,
            self.asked,
            self.arms,
            gen_length=self.gen_length,
            batch_size=self.batch_size,
            others=self.others,
            on_batch=on_batch,
        )
        first = results[self.arms[0].name]
        items = save_items(out / f"{name}.items.json", item_columns(self.asked, results))
        record = new_record(
            "benchmark decode",
            title=f"Decoders on {self.model_name}",
            level="gpu" if next(self.model.parameters()).is_cuda else "cpu",
            seeds={"problems": self.problem_seed},
            settings={
                "model": self.model_name,
                "gen_length": self.gen_length,
                "batch_size": self.batch_size,
                "problems": len(self.asked),
                "tasks": [t.id for t in self.tasks],
            },
            arms=[record_arm(r) for r in results.values()],
            items=items,
            comparisons=[c for r in results.values() if r is not first for c in compare(r, first)],
            notes=[
                "Problems are of the test split, which training never draws.",
                "forwards and rows, per problem, leave out steps behind the end of an answer; "
                "tok/s counts neither prompts nor tokens behind the end.",
                *self._left_out(),
            ],
        )
        save(record, out / f"{name}.json")
        return record

    def show(self, record: Record, out: Path, name: str, *, json: bool) -> None:
        """Table (or JSON), and the page."""
        if json:
            sys.stdout.write(record.model_dump_json(indent=1) + "\n")
        else:
            if self.sweep:
                tables = [sweep_table(record, pareto_sets(record, _COSTS))]
            else:
                tables = [arms_table(record), *breakdown_tables(record)]
            for table in tables:
                print_table(table)
            for line in self._left_out():
                print(line, file=sys.stderr)
        page = out / f"{name}.html"
        plots = [
            (f"Accuracy against {cost}: up and left is better.", svg)
            for cost in (_COSTS if self.sweep else _COSTS[:1])
            if (svg := frontier_of(record, cost)) is not None
        ]
        shown = examples(
            self.model,
            self.tokenizer,
            self.asked[:_EXAMPLES],
            self.arms[:_MOST_CANVASES],
            gen_length=self.gen_length,
            others=self.others,
        )
        write_page(
            page,
            render_page(
                [(name, record)],
                title="Masked-diffusion decoders, side by side",
                record_plots={name: plots},
                canvases=[self._canvas(e) for e in shown],
            ),
        )
        if not json:
            print(f"report page: {page}")

    def _model_of(self, arm: DecoderArm) -> tuple[Any, Any]:
        return (self.model, self.tokenizer) if arm.model is None else self.others[arm.model]

    def _left_out(self) -> list[str]:
        """What the sweep has no arm for, by reason."""
        reasons: dict[str, list[str]] = {}
        for name, why in self.refused.items():
            reasons.setdefault(why, []).append(name)
        return [
            f"left out: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}"
            for why, names in reasons.items()
        ]

    def _canvas(self, example: Example) -> Canvas:
        runs = []
        for arm, done, correct in example.runs:
            assert done.trace is not None
            runs.append(
                CanvasRun(
                    name=arm.name,
                    tokens=[visible(self._model_of(arm)[1], t) for t in done.tokens],
                    commit_step=done.trace.commit_step[done.index].tolist(),
                    confidence=[
                        min(1.0, max(0.0, c)) for c in done.trace.confidence[done.index].tolist()
                    ],
                    steps=done.steps,
                    correct=correct,
                )
            )
        return Canvas(prompt=example.problem.instance.prompt, decoders=runs)
