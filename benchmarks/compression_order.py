"""Which baseline is better, on a model that has learnt something: perplexity after one step.

tiny-ar on held-out problems of the scratchpad tasks: nats per token of their worked answers. Half
of the weights gone, 2 of every 4, 4 bits and 3 bits in groups of 32; three draws of calibration
problems from the training split, cut at the model's context. What is expected: SparseGPT <= Wanda
<= magnitude, and GPTQ <= rounding to nearest, on at least two of three draws.

    OMP_NUM_THREADS=1 python benchmarks/compression_order.py [--problems 420] [--count 128]
"""

import argparse
import copy
import time
from pathlib import Path

import numpy as np

from _record import finish
from whet import zoo
from whet.compress.baselines.pruning import Magnitude, SparseGPT, Wanda
from whet.compress.baselines.quantizing import GPTQ, RTN
from whet.compress.baselines.scaling import AWQ
from whet.compress.data import calibration_batches, solved_problems
from whet.compress.method import Job
from whet.evaluate.autoregressive import AutoregressiveModel
from whet.evaluate.encoding import TokenPair
from whet.measure.record import Arm, Comparison, Metric, claim, new_record
from whet.rng import keyed

MODEL, SOURCE = "tiny-ar", "tasks:scratchpad"
SEEDS = (0, 1, 2)
TEST_SEED = 100
GROUP = 32
SETTINGS = {
    "50 %": {
        "magnitude": Magnitude(),
        "magnitude by row": Magnitude(scope="row"),
        "wanda": Wanda(),
        "wanda by layer": Wanda(scope="layer"),
        "sparsegpt": SparseGPT(),
    },
    "2:4": {
        "magnitude": Magnitude(pattern="2:4"),
        "wanda": Wanda(pattern="2:4"),
        "sparsegpt": SparseGPT(pattern="2:4"),
    },
    "W4 g32": {
        "rtn": RTN(group_size=GROUP),
        "gptq": GPTQ(group_size=GROUP),
        "awq": AWQ(group_size=GROUP),
    },
    "W3 g32": {
        "rtn": RTN(bits=3, group_size=GROUP),
        "gptq": GPTQ(bits=3, group_size=GROUP),
        "awq": AWQ(bits=3, group_size=GROUP),
    },
}
ORDER = (
    ("sparsegpt", "wanda"),
    ("wanda", "magnitude"),
    ("wanda", "magnitude by row"),
    ("wanda by layer", "magnitude"),
    ("gptq", "rtn"),
)


def nats_of(model, tokenizer, solved):
    """Negative log-likelihood of every answer."""
    pairs = [
        TokenPair(tuple(problem), tuple(answer), ("answer", place))
        for place, (problem, answer) in enumerate(solved)
    ]
    scorer = AutoregressiveModel(model, tokenizer, name=MODEL)
    return -np.array([found.value for found in scorer.score(pairs)])


def perplexity(nats, tokens):
    """exp of nats per token, with a bootstrap over problems."""
    rows = keyed(0, "bootstrap").integers(0, len(nats), (2000, len(nats)))
    drawn = np.exp(nats[rows].sum(1) / tokens[rows].sum(1))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(np.exp(nats.sum() / tokens.sum())), (float(low), float(high))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=420)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    model, tokenizer = zoo.load(MODEL)
    length = model.config.max_position_embeddings
    solved = solved_problems(tokenizer, SOURCE, arguments.problems, seed=TEST_SEED, split="test")
    solved = [(problem, answer[: length - len(problem)]) for problem, answer in solved]
    tokens = np.array([float(len(answer)) for _, answer in solved])
    calibration = {
        seed: calibration_batches(
            tokenizer, SOURCE, count=arguments.count, length=length, batch_size=16, seed=seed
        )
        for seed in SEEDS
    }

    value, ci = perplexity(nats_of(model, tokenizer, solved), tokens)
    metric = Metric(value=value, ci=ci, n=len(solved))
    arms, nats = [Arm(name="dense", chain=MODEL, metrics={"perplexity": metric})], {}
    for setting, methods in SETTINGS.items():
        for label, method in methods.items():
            found, seconds = [], 0.0
            for seed in SEEDS if method.calibrates else SEEDS[:1]:
                start = time.perf_counter()
                smaller = copy.deepcopy(model)
                batches = calibration[seed] if method.calibrates else ()
                method.apply(Job(model=smaller, batches=batches, seed=seed))
                seconds += time.perf_counter() - start
                found.append(nats_of(smaller, tokenizer, solved))
            nats[setting, label] = found
            value, ci = perplexity(np.mean(found, 0), tokens)
            metrics = {"perplexity": Metric(value=value, ci=ci, n=len(solved))}
            for seed, one in enumerate(found if method.calibrates else ()):
                alone, ci = perplexity(one, tokens)
                metrics[f"perplexity/draw {seed}"] = Metric(value=alone, ci=ci, n=len(solved))
            options = {k: v for k, v in method.identity().items() if k != "method"}
            arms.append(
                Arm(
                    name=f"{setting}, {label}",
                    chain=method.id,
                    settings=options,
                    metrics=metrics,
                    cost={"seconds": seconds / len(found)},
                )
            )
            print(f"{setting}, {label}: {value:.4f} ({seconds:.1f} s)", flush=True)

    claims, comparisons = [], []
    for setting in SETTINGS:
        for a, b in ORDER:
            if (setting, a) not in nats or (setting, b) not in nats:
                continue
            # What needs no data is the same for every draw.
            others = nats[setting, b] * (len(SEEDS) if len(nats[setting, b]) == 1 else 1)
            pairs = list(zip(nats[setting, a], others, strict=True))
            names = (f"{setting}, {a}", f"{setting}, {b}")
            in_order = float(sum(x.sum() <= y.sum() for x, y in pairs))
            claims.append(
                claim(
                    f"{setting}: {a} at most {b}",
                    *("order", *names, "draws_in_order", in_order, None, ">=", 2.0),
                    f"{setting}: {a} has at most the perplexity of {b} on at least 2 of 3 draws",
                )
            )
            ratio, interval = perplexity(np.mean([x - y for x, y in pairs], 0), tokens)
            test = f"ratio, mean over draws, paired bootstrap over {len(solved)} problems"
            comparisons.append(
                Comparison(
                    a=names[0],
                    b=names[1],
                    metric="perplexity",
                    value=ratio,
                    ci=interval,
                    test=test,
                )
            )
    record = new_record(
        "compression order",
        title="Baselines of compression against each other, on tiny-ar",
        level="cpu",
        seeds={"test": TEST_SEED, **{f"draw {s}": s for s in SEEDS}},
        settings={
            "model": MODEL,
            "source": SOURCE,
            "problems": len(solved),
            "calibration_problems": arguments.count,
            "length": length,
        },
        arms=arms,
        comparisons=comparisons,
        claims=claims,
        notes=[
            "Perplexity: of the tokens of held-out answers, given their problems.",
            "Magnitude and rounding to nearest need no data: they are the same for every draw.",
            "Wanda compares weights within a row, magnitude within a layer; also by row, to tell.",
            "3 bits have no packed layout: weights are on the grid and stored as numbers.",
        ],
    )
    finish(record, arguments.out / "compression_order.json")


if __name__ == "__main__":
    main()
