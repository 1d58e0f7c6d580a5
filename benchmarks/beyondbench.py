"""BeyondBench without a model: problems of every variation made, certified, solved and checked.

`wide`: 20 problems of each of the 117 variations at its smallest default size, in one process.
`faithful`: 20, or as many as its space holds; variations without any problem are listed with the
reason. Every problem is certified (python-sat, HiGHS, or another algorithm than the generator's:
solvable, unique or optimal as its prompt says) and solved by the oracle, whose answer is rendered,
read back and checked.

    python benchmarks/beyondbench.py [--count 20] [--rounds 3] [--out results/benchmarks]
"""

import argparse
import time
from pathlib import Path

from _record import finish
from whet.measure.record import Arm, Metric, claim, new_record
from whet.measure.stats import bootstrap_mean
from whet.tasks import problems
from whet.tasks.base import size_of_space
from whet.tasks.beyondbench import hard, medium

LIMIT_S = 60.0
VARIATIONS = 117


def variations(mode):
    """One task per variation, at its smallest default size."""
    return [
        cls(variation=name, mode=mode)
        for cls in (*medium.TASKS, *hard.TASKS)
        for name in cls.variations
    ]


def run(task, count, seed):
    """Problems made, certified, solved, written, read and checked; how many were right."""
    valid = 0
    for instance in problems(task, seed=seed, split="test", count=count):
        text = task.render(task.solve(instance))
        answer = task.parse(text, "strict")
        right = answer is not None and task.check(instance, answer).ok
        valid += right and not task.certify(instance)
    return valid


def one_round(mode, count, seed):
    """Seconds and counts by task, and what was left out."""
    seconds, made, valid, notes = {}, 0, 0, []
    for task in variations(mode):
        why = task.empty_because()
        if why:
            notes.append(f"{mode}: {task.label}: no problem: {why}")
            continue
        space = size_of_space(task)
        wanted = count if space is None else min(count, space)
        if wanted < count:
            notes.append(f"{mode}: {task.label}: {wanted} problems are all there are")
        start = time.perf_counter()
        valid += run(task, wanted, seed)
        made += wanted
        seconds[task.id] = seconds.get(task.id, 0.0) + time.perf_counter() - start
    return seconds, made, valid, notes


def arm(mode, rounds):
    """Median-free summary: mean seconds of the rounds with their interval."""
    totals = [sum(r[0].values()) for r in rounds]
    mean, low, high = bootstrap_mean(totals) if len(totals) > 1 else (totals[0],) * 3
    made, valid = sum(r[1] for r in rounds), sum(r[2] for r in rounds)
    metrics = {
        "seconds": Metric(value=mean, ci=(low, high), n=len(totals), unit="s"),
        "valid": Metric(value=valid / made, n=made, unit="fraction"),
        "problems": Metric(value=rounds[0][1], n=len(totals)),
    }
    for task in rounds[0][0]:
        spent = sum(r[0][task] for r in rounds) / len(rounds)
        metrics[f"seconds by task/{task}"] = Metric(value=spent, n=len(rounds), unit="s")
    return Arm(name=mode, chain=f"beyondbench:mode={mode}", metrics=metrics)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    found = {"wide": [], "faithful": []}
    for seed in range(arguments.rounds):
        for mode, rounds in found.items():
            rounds.append(one_round(mode, arguments.count, seed))
            print(f"round {seed}, {mode}: {sum(rounds[-1][0].values()):.1f} s", flush=True)
    arms = [arm(mode, rounds) for mode, rounds in found.items()]
    wide = arms[0].metrics
    record = new_record(
        "beyondbench problems",
        title="BeyondBench: problems made, solved and checked",
        level="cpu",
        seeds={"problems": 0},
        settings={"count": arguments.count, "rounds": arguments.rounds, "variations": VARIATIONS},
        arms=arms,
        claims=[
            claim(
                "time", "order", "wide", "wide", "seconds", wide["seconds"].value,
                wide["seconds"].ci, "<=", LIMIT_S,
                f"{VARIATIONS} variations x {arguments.count} problems in at most {LIMIT_S:g} s",
            ),
            claim(
                "valid", "order", "wide", "wide", "valid", wide["valid"].value, None, ">=", 1.0,
                "every problem is certified by a solver, its solution read back and accepted",
            ),
        ],
        notes=[*found["wide"][0][3], *found["faithful"][0][3]],
    )  # fmt: skip
    finish(record, arguments.out / "beyondbench.json")


if __name__ == "__main__":
    main()
