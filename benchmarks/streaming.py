"""Memory of a streamed compression: a random float32 Llama of 24 blocks of 113 MB (2.7 GB).

Each step runs in a fresh process, from a checkpoint folder to a checkpoint folder. Counted is
anonymous memory above that after the imports; the bound is 2.5 blocks, 4 times the largest
statistic of the step and a batch of activations.

    python benchmarks/streaming.py [--steps gptq:bits=4 ...] [--out results/benchmarks]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from transformers import LlamaConfig

from _record import finish
from whet.bench.streaming import write_random_llama
from whet.measure.memory import run_isolated
from whet.measure.record import Arm, Metric, claim, new_record

BLOCKS, WIDTH, INNER, VOCAB = 24, 1536, 4096, 1024
BATCHES, BATCH_SIZE, LENGTH, THREADS = 4, 4, 128, 1
BLOCK = 4 * (4 * WIDTH**2 + 3 * WIDTH * INNER + 2 * WIDTH)
# What the down projection's inputs leave behind, in float64: three numbers per channel, and for
# the methods that solve for weights their Gram matrix.
VECTORS, GRAM = 3 * 8 * INNER, 8 * INNER**2
ACTIVATIONS = 4 * BATCH_SIZE * LENGTH * WIDTH
STEPS = ("wanda:sparsity=0.5", "sparsegpt:sparsity=0.5", "gptq")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", nargs="+", default=STEPS)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=12,
        max_position_embeddings=LENGTH,
    )
    arms, claims = [], []
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "source"
        write_random_llama(source, config)
        for step in arguments.steps:
            statistic = VECTORS + (0 if step.startswith("wanda") else GRAM)
            bound = 2.5 * BLOCK + 4 * statistic + ACTIVATIONS
            peaks = []
            for _ in range(arguments.repeats):
                with tempfile.TemporaryDirectory() as out:
                    found = run_isolated(
                        "whet.bench.streaming:streamed_peak",
                        {
                            "source": str(source),
                            "out": str(Path(out) / "smaller"),
                            "step": step,
                            "batches": BATCHES,
                            "batch_size": BATCH_SIZE,
                            "length": LENGTH,
                            "max_memory": int(bound),
                            "threads": THREADS,
                        },
                    )
                peaks.append(found["added"])
                print(f"{step}: {found['added'] / 1e6:,.0f} MB", flush=True)
            peak = statistics.median(peaks)
            limit = f"bound for {step}"
            for name, value in ((step, peak), (limit, bound)):
                metric = Metric(value=value, unit="bytes")
                cost = {"peak_bytes": peak} if name == step else {}
                arms.append(Arm(name=name, chain=step, metrics={"added": metric}, cost=cost))
            claims.append(
                claim(
                    f"streaming: {step}",
                    "ratio",
                    step,
                    limit,
                    "added",
                    peak / bound,
                    None,
                    "<=",
                    1.0,
                    "2.5 blocks, 4 of the largest statistic and a batch of activations",
                )
            )
    record = new_record(
        "streaming memory",
        title="Anonymous memory of a streamed compression, 24 blocks of 113 MB",
        level="cpu",
        seeds={"weights": 0, "tokens": 1},
        settings={
            "blocks": BLOCKS,
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "batches": BATCHES,
            "batch_size": BATCH_SIZE,
            "length": LENGTH,
            "threads": THREADS,
            "block_bytes": BLOCK,
            "statistic_bytes": {"vectors": VECTORS, "gram": GRAM},
            "activation_bytes": ACTIVATIONS,
            "repeats": arguments.repeats,
        },
        arms=arms,
        claims=claims,
        notes=["RssAnon sampled every 2 ms; the checkpoint itself is memory-mapped, not counted."],
    )
    finish(record, arguments.out / "streaming.json")


if __name__ == "__main__":
    main()
