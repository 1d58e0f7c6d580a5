"""Randomness by key: the same (seed, keys) give the same numbers in any batch, order or process.

A stream is named by what it is for, never by when it is drawn: `keyed(seed, "data", step)`,
`keyed(seed, "noise", request, hypothesis, step)`. Batch therefore equals single, and a resumed
run needs no stored generator state.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

Key = str | int


def key_bits(seed: int, *keys: Key, bits: int = 128) -> int:
    """A stable integer of `bits` bits (at most 512) from a seed and keys (text or integers)."""
    digest = hashlib.blake2b(digest_size=bits // 8)
    for part in (seed, *keys):
        # The type is part of the key, so that 1 and "1" name different streams.
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little")


def keyed(seed: int, *keys: Key) -> np.random.Generator:
    """A numpy generator (Philox) for the stream named by `seed` and `keys`."""
    import numpy as np

    return np.random.Generator(np.random.Philox(key=key_bits(seed, *keys)))


def keyed_torch(seed: int, *keys: Key) -> torch.Generator:
    """A CPU torch generator for the stream named by `seed` and `keys`.

    Draw on the CPU and move: the numbers are then the same on every device. torch's CPU generator
    keeps 32 bits of a seed, so among very many streams two may coincide; `keyed` has no such limit.
    """
    import torch

    return torch.Generator().manual_seed(key_bits(seed, *keys, bits=64) >> 1)
