"""Peak memory of a generation minus that of one bare forward with the same logit rows.

Vocabulary 126,464, batch 1, prompt 128, 128 positions in windows of 32, float32; every number
from a process of its own. The bound is half of what the logits of the whole canvas would take.

    python benchmarks/memory.py [--repeats 3] [--out results/benchmarks]
"""

import argparse
import statistics
from pathlib import Path

from _record import finish
from whet.measure.memory import run_isolated
from whet.measure.record import Arm, Metric, claim, new_record

VOCAB, PROMPT, GEN, BLOCK = 126_464, 128, 128, 32
ROWS = {"low-confidence": 1, "threshold": 1, "pbs": 2, "soar": 2}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    shape = {"vocab": VOCAB, "prompt": PROMPT, "gen_length": GEN, "block_length": BLOCK}
    shape["threads"] = 2
    bound = 0.5 * (PROMPT + GEN) * VOCAB * 4
    arms, claims, bare = [], [], {}
    for rows in sorted(set(ROWS.values())):
        peaks = [
            run_isolated("whet.bench.footprint:forward_peak", {"rows": rows, **shape})
            for _ in range(arguments.repeats)
        ]
        bare[rows] = statistics.median(peaks)
        arms.append(_arm(f"bare forward, {rows} row(s)", "forward", bare[rows]))
    for decoder, rows in ROWS.items():
        peaks = [
            run_isolated("whet.bench.footprint:generation_peak", {"decoder": decoder, **shape})
            for _ in range(arguments.repeats)
        ]
        peak = statistics.median(peaks)
        arms.append(_arm(decoder, f"{decoder}:block_length={BLOCK}", peak))
        claims.append(
            claim(
                f"memory: {decoder}",
                "difference",
                decoder,
                f"bare forward, {rows} row(s)",
                "peak",
                peak - bare[rows],
                None,
                "<=",
                bound,
                f"{decoder}: at most half a canvas of logits over a bare forward",
            )
        )
    record = new_record(
        "engine memory",
        title="Peak memory of a generation against one bare forward",
        level="cpu",
        seeds={"weights": 0, "prompts": 1},
        settings={**shape, "bound_bytes": bound, "repeats": arguments.repeats},
        arms=arms,
        claims=claims,
        notes=["Resident-set peaks, median of separate processes."],
    )
    finish(record, arguments.out / "memory.json")


def _arm(name, chain, peak):
    metric = Metric(value=peak, unit="bytes")
    return Arm(name=name, chain=chain, metrics={"peak": metric}, cost={"peak_bytes": peak})


if __name__ == "__main__":
    main()
