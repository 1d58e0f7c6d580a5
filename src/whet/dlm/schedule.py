"""Windows of the canvas, filled left to right, and how many tokens each step commits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from whet.errors import OptionError


@dataclass(frozen=True)
class Windows:
    """The columns [start, start + length) of a canvas, cut into windows of `block_length`.

    Positions below are relative to `start`: the region decoders work on.
    """

    start: int
    length: int
    block_length: int

    @classmethod
    def cut(cls, start: int, length: int, block_length: int | None) -> Windows:
        """Errors: OptionError unless the block length divides the length."""
        block = length if block_length is None else block_length
        if length % block:
            raise OptionError(
                f"block_length={block} does not divide the {length} positions to fill"
            )
        return cls(start, length, block)

    @property
    def count(self) -> int:
        return self.length // self.block_length

    def steps_per_window(self, steps: int | None) -> int:
        """`steps` counts the whole canvas; None means one position per step.

        Errors: OptionError unless the number of windows divides `steps`.
        """
        if steps is None:
            return self.block_length
        if steps < 1 or steps % self.count:
            raise OptionError(
                f"steps={steps} must be a multiple of the number of windows ({self.count} = "
                f"{self.length} positions / block_length {self.block_length})"
            )
        return steps // self.count

    def of_positions(self, device: torch.device) -> Int[Tensor, " G"]:
        """Window index of each position of the region."""
        return torch.arange(self.length, device=device) // self.block_length

    def current(self, masked: Bool[Tensor, "R G"]) -> Int[Tensor, " R"]:
        """Each row's leftmost window that still has a mask; the last one where none has."""
        index = self.of_positions(masked.device).expand_as(masked)
        return index.masked_fill(~masked, self.count - 1).amin(-1)


def quota(
    masks_at_start: Int[Tensor, " R"], step: Int[Tensor, " R"], steps_per_window: int
) -> Int[Tensor, " R"]:
    """Tokens to commit in step k of a window that had n masks: n // s, one more while k < n mod s.

    Source: LLaDA, arXiv 2502.09992, algorithm 4 (linear schedule).
    """
    whole = masks_at_start // steps_per_window
    return whole + (step < masks_at_start % steps_per_window).long()
