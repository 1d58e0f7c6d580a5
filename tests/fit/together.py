"""What the processes of tests/fit/test_distributed.py do; started by torchrun, RUN SCENARIO."""

import json
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import nn

from tests.fit.toy import SETTINGS, Regression, at_step
from whet.errors import CheckpointError, InputError, NonFiniteError, OptionError
from whet.fit import checkpoint as checkpoint_
from whet.fit import fit
from whet.fit.distributed import is_sharded, process_group, shard, whole
from whet.fit.rounds import run_rounds

LONG = SETTINGS.model_copy(update={"steps": 50, "log_every": 1, "checkpoint_every": 20})
ROWS = 7  # an odd number: the parts differ in size


class Uneven(Regression):
    """Half of the parameters are used by rows with a positive first input alone."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        module = self.players["model"].module
        module.extra = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        module.never = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.players["model"].optimizer.add_param_group({"params": [module.extra, module.never]})
        self.players["model"].__post_init__()
        self.players["model"].ema = None

    def loss(self, batch, turn):
        inputs, targets = batch
        module = self.players[turn].module
        hidden = inputs
        for layer in module[:3]:
            hidden = layer(hidden)
        positive = inputs[:, 0] > 0
        if positive.any():
            hidden = hidden + (inputs @ module.extra * positive)[:, None]
        return ((hidden - targets) ** 2).mean(), {"rows": float(positive.double().mean())}


def cut(module):
    shard(module, [module[0], module[2]])


def train(run, method, settings=LONG):
    fit(method, settings, run=run, identity={"toy": 7})
    return method


def refusal(error, function):
    try:
        function()
    except error as caught:
        return str(caught)
    raise AssertionError("nothing was refused")


def no_room(*arguments, **options):
    raise OSError(28, "No space left on device")


def gathered(tensor):
    held = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(held, tensor)
    return held


def copies(run, world):
    said = {}
    train(run / "plain", Regression(LONG, ROWS))
    several = LONG.model_copy(update={"accumulation": 3})
    train(run / "accumulated", Regression(several, ROWS), several)
    train(run / "uneven", Uneven(LONG, ROWS))
    # Weights of their own, then the main process's.
    method = Regression(LONG, ROWS)
    with torch.no_grad():
        for p in method.players["model"].module.parameters():
            p.add_(world.rank)
    train(run / "copied", method)

    assert all(
        torch.equal(values[0], values[1])
        for average in method.players["model"].ema.average.values()
        for values in [gathered(average)]
    )
    # Stopped and resumed by as many processes.
    died = at_step(Regression(LONG, ROWS), 33, lambda: 1 / 0)
    refusal(ZeroDivisionError, lambda: train(run / "again", died))
    train(run / "again", Regression(LONG, ROWS))

    # One process alone sees what is not finite.
    method = Regression(LONG, ROWS)
    loss = method.loss
    method.loss = lambda batch, turn: (loss(batch, turn)[0] * (1 if world.main else torch.nan), {})
    said["nan"] = refusal(NonFiniteError, lambda: train(run / "nan", method))
    method = Regression(LONG, ROWS)
    loss = method.loss

    def refuse(batch, turn):
        if world.rank == 1:
            raise NonFiniteError("row 3 is nan")
        return loss(batch, turn)

    method.loss = refuse
    said["row"] = refusal(NonFiniteError, lambda: train(run / "row", method))
    said["small"] = refusal(InputError, lambda: train(run / "small", Regression(LONG, 1)))
    method = Regression(LONG, ROWS)
    names = ("players", "turns", "batch", "loss", "tokens")
    bare = SimpleNamespace(**{name: getattr(method, name) for name in names})
    said["whole"] = refusal(OptionError, lambda: train(run / "whole", bare))
    # The process that writes has no room.
    save_file = checkpoint_.save_file
    checkpoint_.save_file = no_room
    died = Regression(LONG, ROWS)
    said["full"] = refusal(InputError, lambda: train(run / "full", died))
    checkpoint_.save_file = save_file
    said["rounds"] = refusal(
        OptionError,
        lambda: run_rounds(None, LONG, rounds=1, run=run / "rounds", identity={}),
    )
    # Folders that are not shared.
    own = run / f"own-{world.rank}"
    if world.main:
        shutil.copytree(run / "plain", own)
    said["own"] = refusal(CheckpointError, lambda: train(own, Regression(LONG, ROWS)))
    return said


def shards(run, world):
    said = {}
    method = train(run / "plain", Regression(LONG, ROWS, prepare=cut))
    parameters = list(method.players["model"].module.parameters())
    assert all(map(is_sharded, parameters))
    assert sum(p.to_local().numel() for p in parameters) < sum(p.numel() for p in parameters)
    assert all(map(is_sharded, method.players["model"].ema.average.values()))
    weights = {n: whole(p.detach()) for n, p in method.players["model"].module.named_parameters()}
    if world.main:
        torch.save(weights, run / "weights.pt")

    # Stopped and resumed by as many processes: bit-equal.
    died = at_step(Regression(LONG, ROWS, prepare=cut), 33, lambda: 1 / 0)
    refusal(ZeroDivisionError, lambda: train(run / "again", died))
    again = train(run / "again", Regression(LONG, ROWS, prepare=cut))
    for p, q in zip(parameters, again.players["model"].module.parameters(), strict=True):
        assert torch.equal(p.to_local(), q.to_local())

    # A run that one process began is continued, and one is left for one process to continue.
    train(run / "from-one", Regression(LONG, ROWS, prepare=cut))
    died = at_step(Regression(LONG, ROWS, prepare=cut), 33, lambda: 1 / 0)
    refusal(ZeroDivisionError, lambda: train(run / "to-one", died))

    method = Regression(LONG, ROWS, prepare=cut)
    loss = method.loss
    method.loss = lambda batch, turn: (loss(batch, turn)[0] * (1 if world.main else torch.nan), {})
    said["nan"] = refusal(NonFiniteError, lambda: train(run / "nan", method))

    atomic_path = checkpoint_.atomic_path
    checkpoint_.atomic_path = no_room
    method = Regression(LONG, ROWS, prepare=cut)
    said["no folder"] = refusal(InputError, lambda: train(run / "no-folder", method))
    checkpoint_.atomic_path = atomic_path

    # A process that cannot write its part leaves the last good checkpoint.
    def full():
        if world.rank == 1:
            from torch.distributed.checkpoint import hf_storage

            hf_storage.HuggingFaceStorageWriter.write_data = no_room

    died = at_step(Regression(LONG, ROWS, prepare=cut), 33, full)
    said["full"] = refusal(InputError, lambda: train(run / "full", died))
    return said


def stopping(run, world):
    def go(step):
        if world.main:
            (run / "step").write_text(str(step))

    endless = LONG.model_copy(update={"steps": 10**6, "checkpoint_every": 10**6})
    method = Regression(endless, ROWS)
    method.after_step = go
    train(run / "run", method, endless)


def main():
    torch.set_num_threads(1)
    run = Path(sys.argv[1])
    with process_group(minutes=0.5) as world:
        assert world.size == int(os.environ["WORLD_SIZE"])
        said = {"copies": copies, "shards": shards, "stopping": stopping}[sys.argv[2]](run, world)
        (run / f"said-{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
