"""pass@k: the chance that one of k samples is right, estimated from n samples without bias."""

from __future__ import annotations

import math

from whet.errors import OptionError


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k) for n samples of which c are right; a share in [0, 1].

    Source: Chen et al., "Evaluating large language models trained on code", arXiv 2107.03374,
    equation 1; the product of its appendix, so that no large number arises.
    Errors: OptionError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise OptionError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))
