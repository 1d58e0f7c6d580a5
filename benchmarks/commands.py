"""How long commands take: `whet --help`, `whet methods`, and after set-up `make demo`, `make test`.

python benchmarks/commands.py [--with-make] [--out results/benchmarks]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _record import finish
from whet.measure.record import Arm, Metric, claim, new_record

WHET = [sys.executable, "-m", "whet"]
QUICK = {"whet --help": ([*WHET, "--help"], 0.5), "whet methods": ([*WHET, "methods"], 0.5)}
MAKE = {"make demo": (["make", "demo"], 60.0), "make test": (["make", "test"], 15 * 60.0)}


def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--with-make", action="store_true", help="also the two make targets, once")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    arms, claims = [], []
    runs = {name: (*pair, arguments.repeats) for name, pair in QUICK.items()}
    if arguments.with_make:
        runs |= {name: (*pair, 1) for name, pair in MAKE.items()}
    for name, (command, limit, repeats) in runs.items():
        if repeats > 1:
            seconds(command)  # warm-up: compiled files and disk caches
        value = statistics.median(seconds(command) for _ in range(repeats))
        metric = Metric(value=value, n=repeats, unit="s")
        arms.append(Arm(name=name, chain=name, metrics={"time": metric}))
        text = f"{name} within {limit:g} s"
        claims.append(claim(name, "order", name, name, "time", value, None, "<=", limit, text))
    record = new_record(
        "commands",
        title="How long commands take",
        level="cpu",
        seeds={},
        arms=arms,
        claims=claims,
        notes=["Median of repeats after one warm-up; make targets once, after set-up."],
    )
    finish(record, arguments.out / "commands.json")


if __name__ == "__main__":
    main()
