"""First done, first out against fixed batches: 200 prompts, lengths drawn from U{16..128}.

LLaDA-shaped random weights (1 layer, d = 64, vocabulary 256, float32), ragged prompts of 8 to
32 tokens, batches of 8, greedy decoding (one token per step) unless told otherwise. Fixed batches
take prompts as they come and fill canvases of the longest length asked for in the batch, as a
generate() with one `max_new_tokens` does; tokens beyond a prompt's own length are not counted. The
control arm is a fixed batch in which every prompt has its own length (and leaves when it is done,
but nobody takes its place).

    python benchmarks/continuous.py [--prompts 200] [--repeats 3] [--out results/benchmarks]
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from _record import finish
from whet.bench.overhead import random_llada
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.stream import DenoiseStream, Job
from whet.measure.clock import alternate, paired_ratio
from whet.measure.record import Arm, Metric, claim, new_record
from whet.rng import keyed

BATCH = 8


def draw(denoiser, count):
    """(prompt, generation length) pairs."""
    noise = keyed(0, "continuous")
    out = []
    for _ in range(count):
        prompt = noise.integers(1, denoiser.mask_token_id, int(noise.integers(8, 33)))
        out.append((torch.tensor(prompt), int(noise.integers(16, 129))))
    return out


def job(denoiser, prompt, length, request):
    masks = prompt.new_full((length,), denoiser.mask_token_id)
    return Job(torch.cat((prompt, masks)), len(prompt), request)


def continuous(denoiser, asked, options):
    jobs = (job(denoiser, p, n, i) for i, (p, n) in enumerate(asked))
    return sum(1 for _ in DenoiseStream(denoiser, jobs, options=options, batch_size=BATCH))


def fixed_own_lengths(denoiser, asked, options):
    for lo in range(0, len(asked), BATCH):
        part = asked[lo : lo + BATCH]
        jobs = (job(denoiser, p, n, lo + i) for i, (p, n) in enumerate(part))
        list(DenoiseStream(denoiser, jobs, options=options, batch_size=BATCH))


def fixed(denoiser, asked, options):
    for lo in range(0, len(asked), BATCH):
        part = asked[lo : lo + BATCH]
        length, widest = max(n for _, n in part), max(len(p) for p, _ in part)
        canvas = torch.full((len(part), widest + length), denoiser.mask_token_id)
        mask = torch.ones(canvas.shape, dtype=torch.bool)
        for row, (prompt, _) in enumerate(part):
            canvas[row, : widest - len(prompt)] = denoiser.pad_token_id
            mask[row, : widest - len(prompt)] = False
            canvas[row, widest - len(prompt) : widest] = prompt
        requests = range(lo, lo + len(part))
        denoise(denoiser, canvas, mask, options=options, start=widest, requests=requests)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--decoders", nargs="+", default=["greedy"])
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    denoiser = random_llada(layers=1, width=64, vocab=256, context=256, sharpness=15.0)
    asked = draw(denoiser, arguments.prompts)
    tokens = sum(n for _, n in asked)
    ways = {"fixed": fixed, "fixed, own lengths": fixed_own_lengths, "continuous": continuous}
    arms, claims = [], []
    for decoder in arguments.decoders:
        options = decoder_options(decoder)
        for way in ways.values():  # warm-up
            way(denoiser, asked[: 2 * BATCH], options)
        times = alternate(
            {name: partial(way, denoiser, asked, options) for name, way in ways.items()},
            repeats=arguments.repeats,
            warmup=0,
        )
        for name in ways:
            ratio, low, high = paired_ratio(times["fixed"], times[name])
            rate = tokens * arguments.repeats / sum(times[name])
            metrics = {
                "tokens_per_second": Metric(value=rate, n=tokens),
                "throughput": Metric(value=ratio, ci=(low, high), n=arguments.repeats),
            }
            arms.append(
                Arm(
                    name=f"{decoder}, {name}",
                    chain=decoder,
                    settings={"batching": name},
                    metrics=metrics,
                    cost={"seconds": sum(times[name])},
                )
            )
            print(f"{decoder}, {name}: {ratio:.2f}x [{low:.2f}, {high:.2f}]", flush=True)
        ratio, low, high = paired_ratio(times["fixed"], times["continuous"])
        claims.append(
            claim(
                f"throughput: {decoder}",
                "ratio",
                f"{decoder}, continuous",
                f"{decoder}, fixed",
                "throughput",
                ratio,
                (low, high),
                ">=",
                1.5,
                f"{decoder}: at least 1.5 times the throughput of fixed batches of {BATCH}",
            )
        )
    record = new_record(
        "continuous batching",
        title="First done, first out against fixed batches",
        level="cpu",
        seeds={"weights": 0, "prompts": 0},
        settings={"layers": 1, "width": 64, "vocab": 256, "prompts": arguments.prompts}
        | {"gen_length": "U{16..128}", "batch_size": BATCH, "threads": torch.get_num_threads()},
        arms=arms,
        claims=claims,
        notes=["Throughput relative to fixed batches: median over rounds in turns."],
    )
    finish(record, arguments.out / "continuous.json")


if __name__ == "__main__":
    main()
