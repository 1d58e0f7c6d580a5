"""Windows of the canvas, filled left to right, and how many tokens each step commits."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from whet.errors import OptionError


@dataclass(frozen=True)
class Windows:
    """A region of `length` positions, cut into windows of `block_length`.

    offset: positions of the first window that lie before the region (block-causal models count
    blocks from the beginning of the text, so the end of a prompt shares the first block).
    """

    length: int
    block_length: int
    offset: int = 0

    @classmethod
    def cut(cls, length: int, block_length: int | None) -> Windows:
        """Errors: OptionError unless the block length divides the length."""
        block = length if block_length is None else block_length
        if length % block:
            raise OptionError(
                f"block_length={block} does not divide the {length} positions to fill"
            )
        return cls(length, block)

    @classmethod
    def aligned(cls, length: int, block_length: int, before: int) -> Windows:
        """Blocks counted from the beginning of the text, `before` positions ahead of the region."""
        return cls(length, block_length, before % block_length)

    @property
    def count(self) -> int:
        return -(-(self.offset + self.length) // self.block_length)

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


def quota(
    masks_at_start: Int[Tensor, " R"], step: Int[Tensor, " R"], planned: Int[Tensor, " R"]
) -> Int[Tensor, " R"]:
    """Tokens to commit in step k of a window that had n masks: n // s, one more while k < n mod s.

    Source: LLaDA, arXiv 2502.09992, algorithm 4 (linear schedule).
    """
    return masks_at_start // planned + (step < masks_at_start % planned).long()
