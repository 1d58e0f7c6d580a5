"""Do smaller models run faster? Prefill of a sliced and a depth-pruned Llama against the dense one.

A random Llama of 12 blocks of width 768: whole, with a quarter of the stream's channels sliced
away (SliceGPT, with its matrices on the residual path), and with 9 of its 12 blocks. One forward
of 8 texts of 128 tokens, logits of the last token alone, in turns. The claim is that the time
falls, and by at least 0.8 of what the floating-point operations do.

    OMP_NUM_THREADS=1 python benchmarks/sliced_speed.py [--repeats 11]
"""

import argparse
import copy
import statistics
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from _record import finish
from whet.compress.slicegpt import SliceGPT
from whet.measure.clock import alternate, paired_ratio
from whet.measure.record import Arm, Metric, claim, new_record
from whet.models.edits import drop_blocks

SHARE = 0.8
BLOCKS, WIDTH, DROPPED = 12, 768, (9, 10, 11)
SPARSITY = 0.25


def variants():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=WIDTH,
        intermediate_size=2048,
        num_hidden_layers=BLOCKS,
        num_attention_heads=12,
        max_position_embeddings=512,
    )
    dense = LlamaForCausalLM(config).eval()
    sliced, shallow = copy.deepcopy(dense), copy.deepcopy(dense)
    SliceGPT(sparsity=SPARSITY).shape(sliced)
    for name, module in sliced.named_modules():
        if name.endswith("_skip"):  # zeros until now
            nn.init.orthogonal_(module.weight)
    drop_blocks(shallow, DROPPED)
    return {"dense": dense, f"sliced, {SPARSITY:.0%}": sliced, "9 of 12 blocks": shallow}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    models = variants()
    ids = torch.randint(8192, (arguments.rows, arguments.length))

    @torch.no_grad()
    def prefill(model):
        return model(input_ids=ids, use_cache=True, logits_to_keep=1).logits

    flops = {}
    for name, model in models.items():
        with FlopCounterMode(display=False) as counter:
            prefill(model)
        flops[name] = counter.get_total_flops()
    seconds = alternate(
        {name: (lambda m=model: prefill(m)) for name, model in models.items()},
        repeats=arguments.repeats,
        warmup=2,
    )
    arms, claims = [], []
    for name, model in models.items():
        times, size = seconds[name], sum(p.numel() for p in model.parameters())
        ratio, low, high = paired_ratio(times, seconds["dense"])
        work = flops[name] / flops["dense"]
        used = work / ratio, work / high, work / low
        n = arguments.repeats
        arms.append(
            Arm(
                name=name,
                chain=name,
                settings={"parameters": size},
                metrics={
                    "seconds": Metric(value=statistics.median(times), n=n, unit="s"),
                    "time": Metric(value=ratio, ci=(low, high), n=n, unit="fraction of dense"),
                    "flops": Metric(value=work, n=1, unit="fraction of dense"),
                },
                cost={"seconds": sum(times), "flops": float(flops[name])},
            )
        )
        if name == "dense":
            continue
        claims += [
            claim(
                f"faster: {name}",
                *("ratio", name, "dense", "time", ratio, (low, high), "<", 1.0),
                f"{name}: the time of a prefill falls",
            ),
            claim(
                f"speed-up: {name}",
                *("ratio", name, "dense", "speed-up / operations saved", used[0], used[1:]),
                *(">=", SHARE, f"{name}: by at least {SHARE} of what the operations fall by"),
            ),
        ]
    record = new_record(
        "sliced speed",
        title="Prefill of smaller Llamas against the dense one",
        level="cpu",
        seeds={"weights": 0},
        settings={
            "blocks": BLOCKS,
            "width": WIDTH,
            "rows": arguments.rows,
            "length": arguments.length,
            "repeats": arguments.repeats,
            "threads": torch.get_num_threads(),
        },
        arms=arms,
        claims=claims,
        notes=[
            "Medians of the rounds' own ratios to dense; intervals are bootstraps over rounds.",
            "flops: of matrix products and attention, counted while the model runs.",
            "Random weights: nothing is said about quality.",
        ],
    )
    finish(record, arguments.out / "sliced_speed.json")


if __name__ == "__main__":
    main()
