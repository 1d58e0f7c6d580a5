"""Training loop overhead: `fit` / bare forward, backward and optimizer step, in turns.

The zoo's own recipes on batches that are made beforehand. `fit` also clips, averages the weights,
looks for numbers that are not finite, logs, and saves a checkpoint at the end of every piece of
STEPS steps (recipes save every 500).

    OMP_NUM_THREADS=1 python benchmarks/training_overhead.py [--steps 60] [--repeats 7]
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch

from _record import finish
from whet import catalogue
from whet.fit import fit
from whet.measure.clock import alternate, paired_ratio
from whet.measure.record import Arm, Metric, claim, new_record
from whet.zoo import recipes
from whet.zoo.recipe import recipe_method

BOUND = 1.05
RECIPES = ("tiny-dlm", "tiny-dream", "tiny-ar")
WARM = 5


@dataclasses.dataclass
class Premade:
    """A method whose batches are there already."""

    training: object
    batches: list

    def __post_init__(self):
        self.players = self.training.players
        self.turns = self.training.turns
        self.loss = self.training.loss
        self.tokens = self.training.tokens

    def batch(self, step):
        return self.batches[step]


def bare(training, batches):
    player = training.players["model"]
    for batch in batches:
        loss, _ = training.loss(batch, "model")
        loss.backward()
        player.optimizer.step()
        player.optimizer.zero_grad(set_to_none=True)


def looped(training, batches):
    settings = training.recipe.fit.model_copy(update={"steps": len(batches)})
    with tempfile.TemporaryDirectory() as folder:
        fit(Premade(training, batches), settings, run=Path(folder), identity={})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    arms, claims = [], []
    for name in RECIPES:
        path = recipes()[name]
        kind = catalogue.resolve(recipe_method(path), "train")
        # Each variant trains its own copy: their weights stay equal, and so do their costs.
        trainings = [kind(kind.recipe_type.read(path)) for _ in range(2)]
        batches = [trainings[0].batch(step) for step in range(arguments.steps)]
        for training in trainings:
            bare(training, batches[:WARM])
        seconds = alternate(
            {
                "fit": lambda t=trainings[0], b=batches: looped(t, b),
                "bare": lambda t=trainings[1], b=batches: bare(t, b),
            },
            repeats=arguments.repeats,
            warmup=0,
        )
        ratio, low, high = paired_ratio(seconds["fit"], seconds["bare"])
        metric = Metric(value=ratio, ci=(low, high), n=arguments.repeats)
        arms.append(
            Arm(
                name=name,
                chain=training.method,
                settings={"recipe": name, "steps": arguments.steps},
                metrics={"bare_ratio": metric},
                cost={"seconds": sum(seconds["fit"])},
            )
        )
        says = f"{name}: at most {BOUND:.2f} of a bare forward, backward and step"
        claims.append(
            claim(
                f"overhead: {name}",
                *("ratio", name, name, "bare_ratio", ratio, (low, high), "<=", BOUND, says),
            )
        )
        print(f"{name}: {ratio:.3f} [{low:.3f}, {high:.3f}]", flush=True)
    record = new_record(
        "training overhead",
        title="The training loop against bare forward, backward and step",
        level="cpu",
        seeds={"weights": 0},
        settings={
            "steps": arguments.steps,
            "repeats": arguments.repeats,
            "threads": torch.get_num_threads(),
        },
        arms=arms,
        claims=claims,
        notes=[
            "Median of the rounds' own ratios; the interval is a bootstrap over rounds.",
            "Batches are made beforehand: what a method needs to make them is not the loop's.",
        ],
    )
    finish(record, arguments.out / "training_overhead.json")


if __name__ == "__main__":
    main()
