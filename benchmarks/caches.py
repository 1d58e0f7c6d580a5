"""Caches: time of one step against a step without cache, and what they cost in accuracy.

Speed: LLaDA-shaped random weights (4 layers, d = 512, vocabulary 4,096, float32, window of 32 in
the middle of the canvas), one step on a warm cache against one full step, in turns. Accuracy:
tiny-dlm at its own length on fresh problems, every cache against none on the same problems.

    python benchmarks/caches.py [--repeats 15] [--n 700] [--out results/benchmarks]
"""

import argparse
from pathlib import Path

import torch

import whet
from _record import finish
from whet.bench.decoding import DecoderArm, compare, record_arm, run_arms
from whet.bench.overhead import random_canvas, random_llada
from whet.dlm.forward import CachedForward, Feed, FullForward
from whet.evaluate import draw_problems
from whet.measure.clock import alternate, paired_ratio
from whet.measure.record import Arm, Metric, claim, new_record
from whet.tasks import expand

BLOCK = 32
BARS = {256: 1.5, 1024: 3.0}
KINDS = {"prefix": {}, "dual": {}, "dual, vicinity 16": {"vicinity": 16}}
ACCURACY = [
    "threshold",
    "threshold:cache=prefix",
    "threshold:cache=dual",
    "threshold:cache=dual,refresh_interval=2",
    "threshold:cache=dual,refresh_interval=1",
    "threshold:block_length=4",
    "threshold:block_length=4,cache=prefix",
    "threshold:block_length=4,cache=dual",
    "threshold:block_length=4,cache=dual,refresh_interval=2",
    "threshold:block_length=4,cache=dual,vicinity=4",
]


@torch.inference_mode()
def step_times(length, batch, repeats):
    """Seconds of a step by kind: full, and on caches that hold the canvas."""
    denoiser = random_llada(layers=4, width=512, vocab=4096, context=length)
    low = (length - BLOCK) // 2
    canvas = random_canvas(denoiser, batch, low, length - low)
    index = torch.arange(batch).repeat_interleave(BLOCK)
    column = low + torch.arange(BLOCK).repeat(batch)

    def feed(step, slot):
        full = torch.full((batch,), 0)
        return Feed(canvas, full, full + low, full + low + BLOCK, full + step, slot)

    slots = torch.arange(batch)
    forwards = {"none": FullForward(denoiser)}
    for name, settings in KINDS.items():
        kind = name.partition(",")[0]
        forwards[name] = CachedForward(denoiser, kind, **settings)
        forwards[name](feed(0, slots - slots - 1), index, column)
    steps = {
        name: lambda forward=forward: denoiser.project(forward(feed(1, slots), index, column))
        for name, forward in forwards.items()
    }
    return alternate(steps, repeats=repeats, warmup=2)


def speed(repeats):
    arms, claims = [], []
    for length in (128, 256, 512, 1024):
        for batch in (1, 4):
            times = step_times(length, batch, repeats)
            for name in ("none", *KINDS):
                ratio, low, high = paired_ratio(times["none"], times[name])
                arm = f"{name}, L {length}, batch {batch}"
                metric = Metric(value=ratio, ci=(low, high), n=repeats)
                arms.append(
                    Arm(
                        name=arm,
                        chain=f"cache={name.replace(', vicinity ', ',vicinity=')}",
                        settings={"length": length, "batch": batch, "block_length": BLOCK},
                        metrics={"step_speedup": metric},
                        cost={"seconds": sum(times[name])},
                    )
                )
                print(f"{arm}: {ratio:.2f}x [{low:.2f}, {high:.2f}]", flush=True)
                if name == "dual" and length in BARS:
                    says = f"a dual-cache step at L = {length}, batch {batch}: at least "
                    claims.append(
                        claim(
                            f"speed: {arm}",
                            "ratio",
                            f"none, L {length}, batch {batch}",
                            arm,
                            "step_speedup",
                            ratio,
                            (low, high),
                            ">=",
                            BARS[length],
                            f"{says}{BARS[length]:g} times as fast as one without cache",
                        )
                    )
    return arms, claims


def accuracy(n):
    model, tokenizer = whet.load("tiny-dlm")
    asked = draw_problems(expand(["scratchpad"]), n, seed=11)
    wanted = [DecoderArm.parse(text) for text in ACCURACY]
    found = run_arms(model, tokenizer, asked, wanted, gen_length=16, batch_size=64)
    base = {"block_length=4": found["threshold:block_length=4"]}
    arms, comparisons = [], []
    for name, result in found.items():
        arms.append(record_arm(result))
        against = base["block_length=4"] if "block_length=4" in name else found["threshold"]
        if result is not against:
            comparisons.extend(compare(result, against))
    return arms, comparisons


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--n", type=int, default=700)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    arms, claims = speed(arguments.repeats)
    record = new_record(
        "cache speed",
        title="A step on a cache against a step without",
        level="cpu",
        seeds={"weights": 0, "prompts": 1},
        settings={"layers": 4, "width": 512, "vocab": 4096, "block_length": BLOCK}
        | {"threads": torch.get_num_threads()},
        arms=arms,
        claims=claims,
        notes=[
            "Ratios of times of one step (model and output matrix for the window), median over "
            "rounds in turns. Refreshes, one per window at least, cost a full step each."
        ],
    )
    finish(record, arguments.out / "cache_speed.json")
    arms, comparisons = accuracy(arguments.n)
    record = new_record(
        "cache accuracy",
        title="Caches on tiny-dlm: what they cost in accuracy",
        level="cpu",
        seeds={"problems": 11},
        settings={"model": "tiny-dlm", "gen_length": 16, "problems": arguments.n},
        arms=arms,
        comparisons=comparisons,
        notes=[
            "Threshold rule at 0.9. Arms with block_length=4 are compared with the same windows "
            "without cache. The states of so small a model's prompts depend on the canvas more "
            "than a large model's may."
        ],
    )
    finish(record, arguments.out / "cache_accuracy.json")


if __name__ == "__main__":
    main()
