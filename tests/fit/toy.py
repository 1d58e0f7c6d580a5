"""A regression in float64 whose batches come from keys; runs as a process of its own, too.

`python -m tests.fit.toy RUN [ACTION STEP]` trains 12 steps and does ACTION in the batch of STEP.
"""

import os
import resource
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from whet import rng
from whet.fit import FitSettings, Player, fit
from whet.fit.ema import EMA
from whet.fit.schedules import warmup_cosine

ROOT = Path(__file__).parents[2]
SETTINGS = FitSettings(
    steps=12, learning_rate=0.05, warmup=3, ema=0.9, checkpoint_every=5, log_every=4
)


def make_player(name, settings, *, prepare=None):
    torch.manual_seed(rng.key_bits(settings.seed, name, bits=32))
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    if prepare is not None:
        prepare(module)
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = warmup_cosine(settings.steps, settings.warmup)
    ema = EMA(module, settings.ema) if settings.ema else None
    return Player(module, optimizer, schedule, ema, settings.clip)


class Regression:
    """`rows` inputs per step; the loss is a mean over rows."""

    def __init__(self, settings=SETTINGS, rows=6, *, prepare=None):
        self.settings, self.rows = settings, rows
        self.players = {"model": make_player("model", settings, prepare=prepare)}

    def turns(self, step):
        return ("model",)

    def batch(self, step):
        drawn = rng.keyed_torch(self.settings.seed, "rows", step)
        inputs = torch.randn(self.rows, 3, generator=drawn, dtype=torch.float64)
        return inputs, (inputs**2).sum(-1, keepdim=True).sin()

    def tokens(self, batch):
        return len(batch[0])

    def loss(self, batch, turn):
        inputs, targets = batch
        return ((self.players[turn].module(inputs) - targets) ** 2).mean(), {}

    def split(self, batch, turn, parts):
        """By rows, as evenly as it goes."""
        cut = [torch.tensor_split(values, parts) for values in batch]
        pairs = [pair for pair in zip(*cut, strict=True) if len(pair[0])]
        return [(pair, len(pair[0]) / len(batch[0])) for pair in pairs]


def state_of(method):
    out = {}
    for key, player in method.players.items():
        out |= {f"{key}.{n}": t.clone() for n, t in player.module.state_dict().items()}
        if player.ema is not None:
            out |= {f"{key}.ema.{n}": t.clone() for n, t in player.ema.average.items()}
            out[f"{key}.updates"] = torch.tensor(player.ema.updates)
        for index, slots in player.optimizer.state_dict()["state"].items():
            values = {n: torch.as_tensor(t).clone() for n, t in slots.items()}
            out |= {f"{key}.{index}.{n}": t for n, t in values.items()}
    return out


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(t, two[n]) for n, t in one.items())


def at_step(method, step, act):
    """Call `act` when the batch of `step` is asked for."""
    batch = method.batch

    def acting(k):
        if k == step:
            act()
        return batch(k)

    method.batch = acting
    return method


def fill_disk():
    """A file-size limit stands in for a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


def die_in_the_next_save():
    from whet.fit import checkpoint

    checkpoint.write_text = lambda path, text: os.kill(os.getpid(), signal.SIGKILL)


ACTIONS = {
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
    "twice": lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)],
    "full disk": fill_disk,
    "killed save": die_in_the_next_save,
}


def main(run, action=None, step="0"):
    torch.set_num_threads(1)
    method = Regression()
    if action is not None:
        at_step(method, int(step), ACTIONS[action])
    print("go", flush=True)
    fit(method, SETTINGS, run=Path(run), identity={"toy": 1})
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
