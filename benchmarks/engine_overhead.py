"""Engine overhead: whole generations / replays of the very model calls they made.

4 layers, d = 256, vocabulary 4,096, prompt 32, 128 positions in windows of 32, float32, batch 1
and 8. Sharpened random weights, so that thresholds are met now and then.

    python benchmarks/engine_overhead.py [--repeats 7] [--out results/benchmarks]
"""

import argparse
from pathlib import Path

import torch

from whet.bench.overhead import engine_overhead, random_canvas, random_llada
from whet.dlm.decoders import decoder_options
from whet.measure.record import Arm, Metric, claim, new_record, save
from whet.report.tables import arms_table, claims_table, print_table

BOUNDS = {"low-confidence": 1.10, "threshold": 1.10, "soar": 1.15}
GEN, BLOCK, PROMPT = 128, 32, 32


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    denoiser = random_llada(layers=4, width=256, vocab=4096, context=256, sharpness=15.0)
    arms, claims = [], []
    for batch in (1, 8):
        canvas = random_canvas(denoiser, batch, PROMPT, GEN)
        for decoder, bound in BOUNDS.items():
            options = decoder_options(decoder, {"block_length": BLOCK})
            repeats = arguments.repeats if batch == 1 else max(3, arguments.repeats // 2)
            found = engine_overhead(denoiser, canvas, options, start=PROMPT, repeats=repeats)
            name = f"{decoder}, batch {batch}"
            ci = (found.low, found.high)
            arms.append(
                Arm(
                    name=name,
                    chain=f"{decoder}:block_length={BLOCK}",
                    settings={"batch": batch},
                    metrics={"replay_ratio": Metric(value=found.ratio, ci=ci, n=repeats)},
                    cost={
                        "forwards": found.forwards,
                        "rows": found.rows,
                        "seconds": sum(found.generation),
                    },
                )
            )
            claims.append(
                claim(
                    f"overhead: {name}",
                    "ratio",
                    name,
                    name,
                    "replay_ratio",
                    found.ratio,
                    ci,
                    "<=",
                    bound,
                    f"{name}: at most {bound:.2f} of a replay of its model calls",
                )
            )
            print(f"{name}: {found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]", flush=True)
    record = new_record(
        "engine overhead",
        title="Generation against a replay of its model calls",
        level="cpu",
        seeds={"weights": 0, "prompts": 1},
        settings={"layers": 4, "width": 256, "vocab": 4096, "prompt": PROMPT}
        | {"gen_length": GEN, "block_length": BLOCK, "threads": torch.get_num_threads()},
        arms=arms,
        claims=claims,
        notes=["Median of rounds in turns after one warm-up round; softmax in float32."],
    )
    save(record, arguments.out / "engine_overhead.json")
    print_table(arms_table(record))
    print_table(claims_table(record))


if __name__ == "__main__":
    main()
