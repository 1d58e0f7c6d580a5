"""HumanEval and MBPP: programs judged by running tests, which the caller's `execute` does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from whet.errors import OptionError
from whet.tasks.static.base import Execute, Split, StaticProblem, StaticTask, get_field, texts

_READ = 100_000  # characters of a text
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:(?:(?<=\n)|\n)[ \t]*```|\Z)", re.S)
_DEFINES = re.compile(
    r"^(?:(?:async[ \t]+)?def|class)[ \t]+([^\W\d]\w*)|^([^\W\d]\w*)[ \t]*=(?!=)", re.M
)
_ONLY_DEFINES = re.compile(r"(?:(?:[ \t)#@]|(?:def|class|async|import|from)[ \t])[^\n]*|\s*)")


@dataclass(frozen=True)
class CodeTask(StaticTask):
    """A task whose answers are programs."""

    metrics: ClassVar[tuple[str, ...]] = ("pass@1",)

    def score(
        self, problem: StaticProblem, text: str, execute: Execute | None = None
    ) -> dict[str, float]:
        """See `StaticTask.score`."""
        if execute is None:
            raise OptionError(f"task {self.id!r} is scored by running programs: give `execute`")
        program = self.program(problem, text)
        return {"pass@1": float(program is not None and execute(program))}


@dataclass(frozen=True)
class HumanEval(CodeTask):
    """Functions to complete from signature and docstring. Chen et al., arXiv 2107.03374.

    An answer may be the body, or a fenced block with the body or with the whole function.
    """

    id: ClassVar[str] = "humaneval"
    summary: ClassVar[str] = "functions completed from their docstring, hidden tests"
    folder: ClassVar[str] = "humaneval"
    files: ClassVar[Mapping[Split, tuple[str, ...]]] = {
        "test": ("HumanEval.jsonl", "humaneval.jsonl", "test.jsonl")
    }
    num_fewshot: ClassVar[int] = 0
    stop: ClassVar[tuple[str, ...]] = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    max_new_tokens: ClassVar[int] = 1024

    def problem(self, record: Mapping[str, Any], where: str) -> StaticProblem:
        """See `StaticTask.problem`."""
        names = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
        id_, prompt, target, test, entry = (get_field(record, n, str, where) for n in names)
        return StaticProblem(
            id=id_, prompt=prompt, target=target, data={"test": test, "entry_point": entry}
        )

    def question(self, problem: StaticProblem) -> str:
        """See `StaticTask.question`."""
        return problem.prompt

    def solution(self, problem: StaticProblem) -> str:
        """See `StaticTask.solution`."""
        return problem.target

    def program(self, problem: StaticProblem, text: str) -> str:
        """See `StaticTask.program`. Prompt, completion, tests, the call of the check."""
        entry = problem.data["entry_point"]
        block = fenced(text, (entry,))
        code = self.cut(text) if block is None else block
        if re.search(rf"^def\s+{re.escape(entry)}\b", code, re.M):
            code = f"\n{code}"  # a whole function: it replaces the one that the prompt began
        return f"{problem.prompt}{code}\n{problem.data['test']}\ncheck({entry})\n"


@dataclass(frozen=True)
class Mbpp(CodeTask):
    """Small functions from a sentence and three assertions. Austin et al., arXiv 2108.07732.

    The test split is ids 11 to 510 and examples are ids 2 to 4, as in the paper. Deviation: the
    sentence around the task is our own.
    """

    id: ClassVar[str] = "mbpp"
    summary: ClassVar[str] = "small functions from a sentence and three assertions"
    folder: ClassVar[str] = "mbpp"
    files: ClassVar[Mapping[Split, tuple[str, ...]]] = {
        "test": ("mbpp.jsonl", "sanitized-mbpp.json", "sanitized-mbpp.jsonl"),
        "train": ("mbpp.jsonl", "sanitized-mbpp.json", "sanitized-mbpp.jsonl"),
    }
    num_fewshot: ClassVar[int] = 3
    stop: ClassVar[tuple[str, ...]] = ("[DONE]",)
    max_new_tokens: ClassVar[int] = 512

    def load(self, data: Path | str | None = None, split: Split = "test") -> list[StaticProblem]:
        """See `StaticTask.load`. One file holds all splits, by the number of the problem."""
        wanted = range(11, 511) if split == "test" else range(2, 5)
        return [p for p in super().load(data, split) if p.data["number"] in wanted]

    def problem(self, record: Mapping[str, Any], where: str) -> StaticProblem:
        """See `StaticTask.problem`. The cleaned edition calls the text "prompt"."""
        number = get_field(record, "task_id", int, where)
        setup = record.get("test_setup_code") or ""
        imports = texts(record, "test_imports", where) if "test_imports" in record else []
        return StaticProblem(
            id=f"mbpp-{number}",
            prompt=get_field(record, "prompt" if "prompt" in record else "text", str, where),
            target=get_field(record, "code", str, where),
            data={
                "number": number,
                "tests": texts(record, "test_list", where),
                "setup": "\n".join([*imports, str(setup)]).strip(),
            },
        )

    def question(self, problem: StaticProblem) -> str:
        """See `StaticTask.question`."""
        tests = "\n".join(problem.data["tests"])
        return f"Task: {problem.prompt}\nThe Python code must pass these tests:\n{tests}\n[BEGIN]\n"

    def solution(self, problem: StaticProblem) -> str:
        """See `StaticTask.solution`."""
        return f"{problem.target.strip()}\n[DONE]"

    def program(self, problem: StaticProblem, text: str) -> str:
        """See `StaticTask.program`. Code, then the assertions."""
        text = self.cut(text).replace("[BEGIN]", "")
        named = re.findall(r"\w+", " ".join(problem.data["tests"]))
        block = fenced(text, set(_defined(problem.target)).intersection(named))
        code = text if block is None else block
        return "\n".join([code, problem.data["setup"], *problem.data["tests"], ""])


def fenced(text: str, names: Iterable[str] = ()) -> str | None:
    """The last fenced block that defines one of `names`, else the first; None where none is.

    Blocks before it that hold nothing but definitions are its helpers and come along. One that is
    not closed ends with the text.
    """
    blocks = [found[1] for found in _FENCE.finditer(text[:_READ])]
    wanted = set(names)
    last = [i for i, block in enumerate(blocks) if wanted.intersection(_defined(block))][-1:]
    if not last:
        return blocks[0] if blocks else None
    helpers = [b for b in blocks[: last[0]] if all(map(_ONLY_DEFINES.fullmatch, b.split("\n")))]
    return "\n".join([*helpers, blocks[last[0]]])


def _defined(code: str) -> list[str]:
    """Names that a program defines at its top level, as far as that is seen without running it."""
    return [a or b for a, b in _DEFINES.findall(code)]
