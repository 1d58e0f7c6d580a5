"""Canvases of random prompts for the tiny models."""

import pytest
import torch

from tests.conftest import EOS, MASK


@pytest.fixture
def canvases():
    """(canvas [P, L], attention mask [P, L]): ragged prompts, padded left, and masks to fill."""

    def make(prompt_lengths, gen_length, seed=0):
        generator = torch.Generator().manual_seed(seed)
        longest = max(prompt_lengths)
        canvas = torch.full((len(prompt_lengths), longest + gen_length), MASK)
        mask = torch.ones(canvas.shape, dtype=torch.bool)
        for row, length in enumerate(prompt_lengths):
            gap = longest - length
            canvas[row, :gap] = EOS
            mask[row, :gap] = False
            canvas[row, gap:longest] = torch.randint(1, MASK, (length,), generator=generator)
        return canvas, mask

    return make
