"""Models, batches and the whole-model oracle that the tests of calibration share."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.models.test_roles_models import VOCAB, inputs, make
from whet.compress.statistics import InputStatistics
from whet.models.roles import blocks

FIELDS = ("square_sum", "abs_sum", "abs_max", "gram")


def ids(rows, length, seed):
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded_batches():
    """Three batches of two lengths: one without padding, one padded left, one right."""
    left, right = torch.ones(3, 7).long(), torch.ones(2, 7).long()
    left[0, :3] = left[1, :1] = 0
    right[1, 4:] = 0
    return [
        {"input_ids": ids(2, 9, 1), "attention_mask": torch.ones(2, 9).long()},
        {"input_ids": ids(3, 7, 2), "attention_mask": left},
        {"input_ids": ids(2, 7, 3), "attention_mask": right},
    ]


def batches_of(name):
    if name == "dit":
        given = inputs(name)
        return [given | {"hidden_states": given["hidden_states"].double()}]
    batches = padded_batches()
    # Its softmax in float32 makes NaN of float64 rows that see nothing, as left padding does.
    return batches[::2] if name == "gemma2" else batches


def model_of(name):
    return make(name), batches_of(name)


@torch.no_grad()
def by_hooks(model, batches, gram=True):
    """Input statistics of every linear layer in the blocks, from hooks on the whole model."""
    found, inside = {}, tuple(f"{block.name}." for block in blocks(model))
    for batch in batches:
        mask = batch.get("attention_mask")

        def see(module, args, output, name, mask=mask):
            x = args[0].reshape(-1, args[0].shape[-1])
            keep = None if mask is None else mask.reshape(-1).bool()
            new = InputStatistics.of(x, mask=keep, gram=gram)
            found[name] = found[name] + new if name in found else new

        handles = [
            module.register_forward_hook(lambda m, a, o, name=name, see=see: see(m, a, o, name))
            for name, module in model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and name.startswith(inside)
        ]
        model(**batch)
        for handle in handles:
            handle.remove()
    return found


def same(one, two, tolerance=1e-10):
    assert one.count == two.count
    for field in FIELDS:
        a, b = getattr(one, field), getattr(two, field)
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())), field


class Keeping:
    """An edit that changes nothing and keeps every block's statistics."""

    def __init__(self):
        self.statistics = {}

    def __call__(self, run):
        self.statistics |= run.statistics


class Halving(Keeping):
    """Halves what attention and MLP write, one by a factor of its own."""

    def __call__(self, run):
        super().__call__(run)
        with torch.no_grad():
            run.module.get_submodule("mlp.down_proj").weight.mul_(0.5)
            run.module.get_submodule("self_attn.o_proj").weight.mul_(0.7)
        return {"halved": True}
