"""One pass over the prompts: how far each block turns the stream, and where last tokens stand.

The output that counts is the block's own: what transformers hands out as the last hidden state
has passed the final norm, which would make the last block look busier than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from whet.compress.calibrate import Batch, BlockRun, Call, Collector, Progress, calibrate
from whet.compress.calibrate.collect import hidden_of
from whet.models.roles import Block
from whet.models.roles.structure import View


@dataclass(frozen=True)
class Turning:
    """What one pass says of L blocks and P prompts.

    sums: of the cosines between a block's input and output, over each prompt's `counts` tokens.
    last: the stream at each prompt's last token, before every block and after the last one.
    """

    sums: Float64[Tensor, "L P"]
    counts: Int[Tensor, " P"]
    last: Float64[Tensor, "L1 P D"]


@dataclass(frozen=True)
class _Seen:
    """Of one block: Σ cosine and tokens per prompt, the last token before and after it."""

    sums: Tensor
    counts: Tensor
    before: Tensor
    after: Tensor


class _PromptCollector(Collector):
    """Sums per prompt (row of a batch); hangs on the block."""

    def __init__(self, prompts: int, width: int, skip_first: bool) -> None:
        self._nbytes = 8 * prompts * (2 * width + 2)
        self._skip_first = skip_first
        self._seen: list[_Seen] = []

    @property
    def nbytes(self) -> int:
        """Bytes that everything takes."""
        return self._nbytes

    def see(self, call: Call) -> Tensor:
        """Add one call."""
        before, after = call.args[0].detach(), hidden_of(call.output).detach()
        real = call.mask
        if real is None:
            real = torch.ones(before.shape[:2], dtype=torch.bool, device=before.device)
        counted = _without_first(real) if self._skip_first else real
        # Rounding can carry the cosine of a stream that does not turn past 1.
        cosine = F.cosine_similarity(before.double(), after.double(), dim=-1).clamp(-1, 1)
        rows = torch.arange(len(real), device=real.device)
        end = real.shape[1] - 1 - real.flip(1).int().argmax(1)
        self._seen.append(
            _Seen(
                cosine.masked_fill(~counted, 0).sum(1).cpu(),
                # A row that is nothing but padding is no prompt.
                counted.sum(1).masked_fill(~real.any(1), -1).cpu(),
                before[rows, end].double().cpu(),
                after[rows, end].double().cpu(),
            )
        )
        return cosine.masked_fill(~counted, 0).isfinite().all()

    def result(self) -> _Seen:
        """Those of all prompts that have tokens."""
        fields = ("sums", "counts", "before", "after")
        sums, counts, before, after = (
            torch.cat([getattr(seen, field) for seen in self._seen]) for field in fields
        )
        kept = counts >= 0
        return _Seen(sums[kept], counts[kept], before[kept], after[kept])


def _without_first(real: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """The mask without each row's first token."""
    return real & (real.cumsum(1) > 1)


def observe(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    skip_first: bool = False,
    device: torch.device | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Turning:
    """Run the prompts through the blocks once. skip_first: leave each prompt's first token out of
    the cosines, whose activations are massive in many models.

    Errors: those of `calibrate`.
    """
    prompts = sum(len(next(v for v in b.values() if isinstance(v, Tensor))) for b in batches)
    found: list[_Seen] = []

    def watch(model: nn.Module, block: Block) -> Mapping[str, Collector]:
        width = View.of(model).in_width(block.attention.query)
        return {block.name: _PromptCollector(prompts, width, skip_first)}

    def edit(run: BlockRun) -> Mapping[str, Any]:
        found.append(run.statistics[run.block.name])
        return {}

    calibrate(
        model,
        batches,
        edit,
        watch=watch,
        propagate_error=False,  # nothing is edited
        device=device,
        on_progress=on_progress,
    )
    return Turning(
        torch.stack([seen.sums for seen in found]),
        found[0].counts,
        torch.stack([*(seen.before for seen in found), found[-1].after]),
    )
