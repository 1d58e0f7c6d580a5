"""GSM8K and MATH: word problems whose answer is a number, and contest problems in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from whet.errors import InputError
from whet.tasks.answers import last_number, number, undress
from whet.tasks.static import latex
from whet.tasks.static.base import Execute, Split, StaticProblem, StaticTask, get_field

_END_OF_TURN = ("</s>", "<|im_end|>")
_HASHES = re.compile(r"####\s*\$?\s*([^\s$%]+)")
_SAYS = re.compile(r"[Tt]he answer is\s*:?\s*\$?\s*(?=\D?\.?\d)([^\s$%]+)")
_CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Gsm8k(StaticTask):
    """Grade-school word problems. strict: the number after "####"; flexible: the last number.

    Cobbe et al., arXiv 2110.14168. Examples are the first of the training split, their solutions
    as published, with the calculator's notes.
    """

    id: ClassVar[str] = "gsm8k"
    summary: ClassVar[str] = "grade-school word problems, number after ####"
    folder: ClassVar[str] = "gsm8k"
    files: ClassVar[Mapping[Split, tuple[str, ...]]] = {
        "test": ("test.jsonl",),
        "train": ("train.jsonl",),
    }
    num_fewshot: ClassVar[int] = 5
    stop: ClassVar[tuple[str, ...]] = ("Question:", *_END_OF_TURN)
    max_new_tokens: ClassVar[int] = 256
    metrics: ClassVar[tuple[str, ...]] = ("strict", "flexible")

    def problem(self, record: Mapping[str, Any], where: str) -> StaticProblem:
        """See `StaticTask.problem`."""
        question = get_field(record, "question", str, where)
        answer = get_field(record, "answer", str, where)
        working, hashes, last = answer.rpartition("####")
        if not hashes or number(last) is None:
            raise InputError(f'{where}: field "answer" must end with #### and a number')
        return StaticProblem(
            id=f"gsm8k-{where.rpartition(' ')[2]}",
            prompt=question,
            target=last.strip(),
            data={"working": working.rstrip(), "solution": answer},
        )

    def question(self, problem: StaticProblem) -> str:
        """See `StaticTask.question`."""
        return f"Question: {problem.prompt}\nAnswer:"

    def solution(self, problem: StaticProblem) -> str:
        """See `StaticTask.solution`."""
        return f" {problem.data['solution']}"

    def score(
        self, problem: StaticProblem, text: str, execute: Execute | None = None
    ) -> dict[str, float]:
        """See `StaticTask.score`."""
        text, truth = self.cut(text), number(problem.target)
        return {
            "strict": float(self.stated(text) == truth),
            "flexible": float(last_number(text) == truth),
        }

    def stated(self, text: str) -> Fraction | None:
        """The number in the form that the examples show; the first, as later ones are of problems
        the model made up."""
        found = _HASHES.search(text)
        return number(undress(found[1]).rstrip(".,;")) if found else None


@dataclass(frozen=True)
class Gsm8kCot(Gsm8k):
    """The same problems with eight worked examples. strict: the number after "The answer is".

    After Wei et al., arXiv 2201.11903. Deviation: the examples are the first of the training
    split, reworded by rule, not that paper's own eight.
    """

    id: ClassVar[str] = "gsm8k_cot"
    summary: ClassVar[str] = "the same, with worked examples that end in: The answer is N."
    num_fewshot: ClassVar[int] = 8
    stop: ClassVar[tuple[str, ...]] = ("Q:", *_END_OF_TURN)

    def question(self, problem: StaticProblem) -> str:
        """See `StaticTask.question`."""
        return f"Q: {problem.prompt}\nA:"

    def solution(self, problem: StaticProblem) -> str:
        """See `StaticTask.solution`."""
        working = _CALCULATOR.sub("", problem.data["working"])
        return f" {' '.join(working.split())} The answer is {problem.target}."

    def stated(self, text: str) -> Fraction | None:
        """See `Gsm8k.stated`."""
        found = _SAYS.search(text)
        return number(undress(found[1]).rstrip(".,;")) if found else None


@dataclass(frozen=True)
class MinervaMath(StaticTask):
    r"""Contest problems; the answer is the last \boxed{...}, compared after normalisation.

    Hendrycks et al., arXiv 2103.03874, prompted as Lewkowycz et al., arXiv 2206.14858. Deviation:
    examples are the first of the training file, not that paper's four.
    """

    id: ClassVar[str] = "minerva_math"
    summary: ClassVar[str] = "contest mathematics, boxed answer"
    folder: ClassVar[str] = "math"
    files: ClassVar[Mapping[Split, tuple[str, ...]]] = {
        "test": ("test.jsonl", "math_test.jsonl", "math.jsonl", "MATH.jsonl"),
        "train": ("train.jsonl", "math_train.jsonl"),
    }
    num_fewshot: ClassVar[int] = 4
    stop: ClassVar[tuple[str, ...]] = ("Problem:", *_END_OF_TURN)
    max_new_tokens: ClassVar[int] = 512
    metrics: ClassVar[tuple[str, ...]] = ("exact_match",)

    def problem(self, record: Mapping[str, Any], where: str) -> StaticProblem:
        """See `StaticTask.problem`. The target is the field "answer" or the solution's last box."""
        question = get_field(record, "problem", str, where)
        solution = get_field(record, "solution", str, where)
        answer = record["answer"] if "answer" in record else latex.boxed(solution)
        if not isinstance(answer, str):
            raise InputError(f'{where} has no \\boxed{{...}} in "solution" and no "answer"')
        number_of_line = where.rpartition(" ")[2]
        return StaticProblem(
            id=str(record.get("unique_id", f"math-{number_of_line}")),
            prompt=question,
            target=answer,
            data={name: record[name] for name in ("level", "type", "subject") if name in record}
            | {"solution": solution},
        )

    def question(self, problem: StaticProblem) -> str:
        """See `StaticTask.question`."""
        return f"Problem:\n{problem.prompt}\n\nSolution:"

    def solution(self, problem: StaticProblem) -> str:
        """See `StaticTask.solution`."""
        return f" {problem.data['solution']}"

    def score(
        self, problem: StaticProblem, text: str, execute: Execute | None = None
    ) -> dict[str, float]:
        """See `StaticTask.score`."""
        text = self.cut(text)
        found = latex.boxed(text) or latex.said(text)
        return {"exact_match": float(found is not None and latex.same(found, problem.target))}
