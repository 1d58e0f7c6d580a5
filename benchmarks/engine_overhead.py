"""Engine overhead: whole generations / replays of the very model calls they made, in turns.

4 layers, d = 256, vocabulary 4,096, prompt 128, windows of 32, float32, batch 1 (the threshold rule
at 8 too), sharpened random weights so that thresholds are met now and then. Every decoder with the
cache off; the sources of logits (caches, guidance, soft embeddings, sampling) with the threshold
rule; the block cache on an SDAR and DiffusionGemma's rule on a DiffusionGemma of the same size.

    python benchmarks/engine_overhead.py [--repeats 5] [--gen-length 32] [--out results/benchmarks]
"""

import argparse
from pathlib import Path

import torch

from _record import finish
from whet import catalogue
from whet.bench.overhead import (
    engine_overhead,
    random_canvas,
    random_gemma,
    random_llada,
    random_sdar,
)
from whet.dlm.decoders import decoder_options
from whet.measure.record import Arm, Metric, claim, new_record

PROMPT, BLOCK = 128, 32
BATCH_8 = ("threshold",)
# The bar is for rules without beams on plain forwards; beams copy canvases, hence a higher one.
BOUND, BEAM_BOUND = 1.10, 1.15
PROVIDERS = [
    "threshold:cache=prefix",
    "threshold:cache=dual",
    "threshold:cache=dual,refresh_interval=4",
    "threshold:cache=dual,vicinity=16",
    "threshold:cfg_scale=0.5",
    "threshold:smooth=0.3",
]
SAMPLING = ["threshold:temperature=0.8", "threshold:temperature=0.8,top_p=0.9,top_k=50"]


def decoders():
    """(model, arm's text, bound or None) of every case."""
    rules = [m for m in catalogue.methods().values() if "decode" in m.parts]
    for method in rules:
        if "llada" in method.applies_to:
            beams = catalogue.resolve(method.id, "decode").branches
            yield "llada", method.id, BEAM_BOUND if beams else BOUND
    for text in PROVIDERS + SAMPLING:
        yield "llada", text, None
    yield "sdar", "sdar", None
    yield "sdar", "sdar:cache=block", None
    yield "diffusion_gemma", "diffusion-gemma:max_steps=16", None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--gen-length", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    size = {"layers": 4, "width": 256, "vocab": 4096, "context": 256}
    models = {
        "llada": random_llada(**size, sharpness=15.0),
        "sdar": random_sdar(**size, block_length=BLOCK, sharpness=15.0),
        "diffusion_gemma": random_gemma(**size, canvas_length=BLOCK),
    }
    arms, claims = [], []
    for batch in (1, 8):
        for family, text, bound in decoders():
            if batch == 8 and text not in BATCH_8:
                continue
            denoiser = models[family]
            canvas = random_canvas(denoiser, batch, PROMPT, arguments.gen_length)
            # The paths of NAP advance together: there are no windows.
            options = decoder_options(text, {} if text == "nap" else {"block_length": BLOCK})
            repeats = arguments.repeats if batch == 1 else max(3, arguments.repeats // 2)
            found = engine_overhead(denoiser, canvas, options, start=PROMPT, repeats=repeats)
            where = "" if family == "llada" else f" on {family}"
            name, ci = f"{text}{where}, batch {batch}", (found.low, found.high)
            metric = Metric(value=found.ratio, ci=ci, n=repeats)
            cost = {
                "forwards": found.forwards,
                "rows": found.rows,
                "seconds": sum(found.generation),
            }
            settings = {"model": family, "batch": batch}
            settings["block_length"] = None if text == "nap" else BLOCK
            arms.append(
                Arm(
                    name=name,
                    chain=text,
                    settings=settings,
                    metrics={"replay_ratio": metric},
                    cost=cost,
                )
            )
            if bound is not None:
                says = f"{name}: at most {bound:.2f} of a replay of its model calls"
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
                        says,
                    )
                )
            print(f"{name}: {found.ratio:.3f} [{found.low:.3f}, {found.high:.3f}]", flush=True)
    record = new_record(
        "engine overhead",
        title="Generation against a replay of its model calls",
        level="cpu",
        seeds={"weights": 0, "prompts": 1},
        settings={
            "layers": 4,
            "width": 256,
            "vocab": 4096,
            "prompt": PROMPT,
            "gen_length": arguments.gen_length,
            "block_length": BLOCK,
            "threads": torch.get_num_threads(),
        },
        arms=arms,
        claims=claims,
        notes=[
            "Median of the ratios of rounds (generation and replay in turns), one warm-up round; "
            "softmax in float32.",
            "No bar is set for caches, guidance, soft embeddings and sampling: their replays hold "
            "the model's calls alone, so copying keys and values, mixing embeddings and drawing "
            "tokens all count as overhead.",
        ],
    )
    finish(record, arguments.out / "engine_overhead.json")


if __name__ == "__main__":
    main()
