import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.fit.toy import SETTINGS, equal
from whet import rng
from whet.errors import CheckpointError, InputError, OptionError
from whet.fit import Player
from whet.fit.local import BlockTraining, fit_blocks, record_blocks
from whet.fit.schedules import warmup_cosine

NAMES = ("first", "second")
WIDTH, ROWS = 4, 6


class Block(nn.Module):
    def __init__(self, seed, rank=None):
        super().__init__()
        torch.manual_seed(seed)
        middle = rank or WIDTH
        self.down = nn.Linear(WIDTH, middle, dtype=torch.float64)
        self.up = nn.Linear(middle, WIDTH, dtype=torch.float64)

    def forward(self, hidden, scale=1.0):
        return (hidden + self.up(self.down(hidden).tanh()) * scale, None)


def teacher():
    return {name: Block(k) for k, name in enumerate(NAMES)}


def run_teacher(blocks, ran=None):
    def run_batch(number):
        if ran is not None:
            ran.append(number)
        drawn = rng.keyed_torch(0, "batch", number)
        hidden = torch.randn(ROWS, 3, WIDTH, generator=drawn, dtype=torch.float64)
        for block in blocks.values():
            hidden, _ = block(hidden, scale=1.0)
        return hidden

    return run_batch


def record(out, blocks=None, *, batches=5, run_batch=None, **options):
    blocks = blocks or teacher()
    options = {"identity": {"teacher": 0}} | options
    record_blocks(blocks, run_batch or run_teacher(blocks), batches=batches, out=out, **options)
    return blocks


def students():
    made = {}
    for k, name in enumerate(NAMES):
        block = Block(10 + k, rank=2)
        optimizer = torch.optim.AdamW(block.parameters(), lr=0.03)
        made[name] = Player(block, optimizer, warmup_cosine(12, 2))
    return made


def train(recorded, run, players=None, **options):
    players = players or students()
    fit_blocks(players, SETTINGS, recorded=recorded, run=run, identity={"toy": 6}, **options)
    return {f"{n}.{k}": t for n, p in players.items() for k, t in p.module.state_dict().items()}


def test_a_recording_holds_what_went_in_and_came_out(tmp_path):
    blocks = record(tmp_path)
    for number in range(5):
        drawn = rng.keyed_torch(0, "batch", number)
        hidden = torch.randn(ROWS, 3, WIDTH, generator=drawn, dtype=torch.float64)
        for name, block in blocks.items():
            stored = load_file(tmp_path / name / f"{number:05}.safetensors")
            assert torch.equal(stored["input"], hidden)
            hidden = block(hidden)[0]
            assert torch.equal(stored["target"], hidden)
    assert not any(block._forward_hooks for block in blocks.values())


def test_a_recording_goes_on_where_it_stopped(tmp_path):
    record(tmp_path / "one")
    blocks, ran = teacher(), []
    run_batch = run_teacher(blocks, ran)

    def stopping(number):
        if number == 3:
            raise KeyboardInterrupt
        run_batch(number)

    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "two", blocks, run_batch=stopping)
    assert not any(block._forward_hooks for block in blocks.values())
    (tmp_path / "two" / "second" / "00001.safetensors").unlink()
    ran.clear()
    record(tmp_path / "two", blocks, run_batch=run_batch)
    assert ran == [1, 3, 4]
    for path in (tmp_path / "one").glob("*/*.safetensors"):
        again = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert equal(load_file(path), load_file(again))


def test_every_block_learns_its_own_recording(tmp_path):
    record(tmp_path / "data")
    before = {n: p.module for n, p in students().items()}
    players = students()
    train(tmp_path / "data", tmp_path / "run", players)
    for name in NAMES:
        stored = [load_file(p) for p in (tmp_path / "data" / name).glob("*")]

        def error(block, stored=stored):
            gaps = [(block(s["input"])[0] - s["target"]).square().mean() for s in stored]
            return float(sum(gaps).detach())

        assert error(players[name].module) < 0.5 * error(before[name])
    # A block trained alone is the block trained beside others.
    alone = students()["second"]
    one = train(tmp_path / "data", tmp_path / "alone", {"second": alone})
    assert equal(one, {f"second.{n}": t for n, t in players["second"].module.state_dict().items()})


def test_an_epoch_takes_every_batch_once_in_its_own_order(tmp_path):
    record(tmp_path)
    method = BlockTraining(students()["first"], tmp_path / "first", seed=3)
    orders = []
    for epoch in range(3):
        batches = [method.batch(5 * epoch + k)["input"].sum().item() for k in range(5)]
        orders.append(batches)
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert len({tuple(order) for order in orders}) > 1
    assert method.tokens(method.batch(0)) == ROWS * 3


@pytest.mark.parametrize("dies_in", [("first", 7), ("second", 0), ("second", 8)])
def test_blocks_resume_bit_equal(tmp_path, monkeypatch, dies_in):
    record(tmp_path / "data")
    straight = train(tmp_path / "data", tmp_path / "one")
    batch = BlockTraining.batch

    def dying(self, step):
        if (self.paths[0].parent.name, step) == dies_in:
            raise KeyboardInterrupt
        return batch(self, step)

    monkeypatch.setattr(BlockTraining, "batch", dying)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "data", tmp_path / "two")
    monkeypatch.undo()
    assert equal(train(tmp_path / "data", tmp_path / "two"), straight)


def test_parts_of_a_batch_average_to_the_whole(tmp_path):
    record(tmp_path)
    method = BlockTraining(students()["first"], tmp_path / "first")
    batch = method.batch(0)
    whole, _ = method.loss(batch, "block")
    for count in (1, 2, 4, 6):
        parts = method.split(batch, "block", count)
        assert len(parts) == count
        total = sum(share * method.loss(part, "block")[0] for part, share in parts)
        torch.testing.assert_close(total, whole, rtol=1e-12, atol=0)
    assert len(method.split(batch, "block", 7)) == 6


def test_what_is_stored_and_what_is_minimised_can_be_chosen(tmp_path):
    def capture(arguments, keywords, output):
        return {"input": arguments[0], "change": output[0] - arguments[0]}

    def loss(block, stored):
        return (block(stored["input"])[0] - stored["input"] - stored["change"]).abs().mean()

    record(tmp_path / "data", capture=capture)
    train(tmp_path / "data", tmp_path / "run", loss=loss)
    record(tmp_path / "plain")
    changed = train(tmp_path / "data", tmp_path / "again", loss=loss)
    assert not equal(changed, train(tmp_path / "plain", tmp_path / "other"))


def test_a_block_that_changes_its_input_in_place(tmp_path):
    class InPlace(Block):
        def forward(self, hidden):
            return hidden.add_(1)

    blocks = {"only": InPlace(0)}
    record(tmp_path, blocks, run_batch=lambda number: blocks["only"](torch.zeros(2, 3)), batches=1)
    stored = load_file(tmp_path / "only" / "00000.safetensors")
    assert stored["target"].eq(1).all()
    assert not stored["input"].any()


def test_bad_input(tmp_path):
    with pytest.raises(OptionError, match="batches=0 must be at least 1"):
        record(tmp_path / "a", batches=0)
    with pytest.raises(OptionError, match="blocks is empty"):
        record_blocks({}, lambda number: None, batches=1, out=tmp_path / "a", identity={})
    blocks = teacher()
    with pytest.raises(InputError, match="block 'first' was called 0 times in batch 0"):
        record(tmp_path / "a", blocks, run_batch=lambda number: None)
    once = run_teacher(blocks)
    with pytest.raises(InputError, match="block 'first' was called 2 times in batch 0"):
        record(tmp_path / "a", blocks, run_batch=lambda number: (once(0), once(0)))
    record(tmp_path / "b")
    with pytest.raises(CheckpointError, match=r"another recipe \(different: identity.teacher\)"):
        record(tmp_path / "b", identity={"teacher": 1})
    with pytest.raises(CheckpointError, match=r"another recipe \(different: batches\)"):
        record(tmp_path / "b", batches=4)
    with pytest.raises(InputError, match=r"c/recording.json cannot be read .*record the blocks"):
        train(tmp_path / "c", tmp_path / "run")
    with pytest.raises(InputError, match=r"b/third holds no recorded batches"):
        BlockTraining(students()["first"], tmp_path / "b" / "third")
    kept = (tmp_path / "b" / "second" / "00004.safetensors").rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"second holds 4 of 5 batches: let the recording"):
        train(tmp_path / "b", tmp_path / "run")
    kept.rename(tmp_path / "b" / "second" / "00004.safetensors")
    for path in (tmp_path / "b" / "first").glob("*"):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="safetensors: damaged recording"):
        train(tmp_path / "b", tmp_path / "run")
