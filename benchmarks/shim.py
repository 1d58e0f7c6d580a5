"""What the `custom_generate` shim adds to a call: the shim against the bare function, in turns.

A LLaDA of one layer (d = 64, vocabulary 4,096), 4 positions in one step, so that the call itself
is short. Beside it, what transformers' own generate() adds before it reaches the shim.

    python benchmarks/shim.py [--repeats 200] [--out results/benchmarks]
"""

import argparse
import copy
import statistics
from pathlib import Path

import numpy as np
import torch

from _record import finish
from whet.bench.overhead import random_canvas, random_llada
from whet.dlm.canvas import denoise
from whet.dlm.low_confidence import LowConfidence, low_confidence
from whet.measure.clock import alternate
from whet.measure.record import Arm, Metric, claim, new_record
from whet.measure.stats import quantile_interval
from whet.rng import keyed

BAR = 0.5e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    denoiser = random_llada(layers=1, width=64, vocab=4096, context=64)
    model = denoiser.model
    canvas = random_canvas(denoiser, 1, 16, 4)
    ids = canvas[:, :16]
    config = copy.deepcopy(model.generation_config)
    config.max_length, config.do_sample, config.guidance_scale = 20, False, None
    ways = {
        "denoise": lambda: denoise(model, canvas, options=LowConfidence(steps=1), start=16),
        "shim": lambda: low_confidence(model, ids, None, None, config, steps=1),
        "generate()": lambda: model.generate(
            ids, custom_generate=low_confidence, max_new_tokens=4, steps=1
        ),
    }
    times = alternate(ways, repeats=arguments.repeats, warmup=20)
    arms = [
        Arm(
            name=name,
            chain=name,
            metrics={"time": Metric(value=statistics.median(t), n=len(t), unit="s")},
        )
        for name, t in times.items()
    ]
    added = np.array(times["shim"]) - np.array(times["denoise"])
    # Medians: means are at the mercy of single stalls.
    draws = keyed(0, "shim").integers(0, len(added), (5_000, len(added)))
    value = float(np.median(added))
    low, high = quantile_interval(np.median(added[draws], axis=1), 0.95)
    record = new_record(
        "shim",
        title="What the custom_generate shim adds to a call",
        level="cpu",
        seeds={"weights": 0, "prompts": 1},
        settings={"layers": 1, "width": 64, "threads": torch.get_num_threads()},
        arms=arms,
        claims=[
            claim(
                "shim",
                "difference",
                "shim",
                "denoise",
                "time",
                value,
                (low, high),
                "<=",
                BAR,
                "the shim adds at most 0.5 ms to a call",
            )
        ],
        notes=[
            "Difference in pairs of rounds, median. What generate() adds besides "
            "is transformers' own preparation."
        ],
    )
    finish(record, arguments.out / "shim.json")


if __name__ == "__main__":
    main()
