"""Exponential moving average of the parameters that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """average <- d * average + (1 - d) * parameter, with d = min(decay, (1 + n) / (10 + n)).

    The second form keeps the average close to the weights in the first steps (n counts updates).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.average = {n: p.detach().clone() for n, p in _trained(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the averages towards the module's parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages, values = [], []
        for name, parameter in _trained(module):
            averages.append(self.average[name])
            values.append(parameter.detach())
        torch._foreach_lerp_(averages, values, 1 - decay)

    @contextmanager
    def swapped_in(self, module: nn.Module) -> Iterator[None]:
        """Run the block with the averages in place of the parameters."""
        kept = {n: p.detach().clone() for n, p in _trained(module)}
        self._copy_into(module, self.average)
        try:
            yield
        finally:
            self._copy_into(module, kept)

    @staticmethod
    @torch.no_grad()
    def _copy_into(module: nn.Module, values: dict[str, Tensor]) -> None:
        for name, parameter in _trained(module):
            parameter.copy_(values[name])


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in module.named_parameters() if p.requires_grad)
