"""RTN: every weight to the nearest number of its grid. What other quantizers are compared with."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from whet.compress.result import LayerReport, QuantizedLinear, check_weight
from whet.errors import OptionError
from whet.layers.quantizer import Grid, Search, quantize_nearest


@torch.no_grad()
def rtn(
    weight: Float[Tensor, "O I"], grid: Grid, *, search: Search | None = None
) -> QuantizedLinear:
    """Round a weight. search: smaller ranges are tried, and the one of least error is taken.

    Errors: OptionError for a grid of activations; see `result.check_weight` and
    `quantizer.find_scales`.
    """
    check_weight(weight)
    check_weight_grid(grid)
    return QuantizedLinear(quantize_nearest(weight, grid, search=search), LayerReport("rtn"))


def check_weight_grid(grid: Grid) -> None:
    """Errors: OptionError for a grid of activations."""
    if grid.granularity == "token":
        raise OptionError(
            "granularity='token' is for activations: weights need 'tensor', 'channel' or 'group'"
        )
