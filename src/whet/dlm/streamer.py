"""Committed text as it comes, for transformers' streamers.

A canvas fills in any order, a reader reads from the left: what is put is the unbroken run of
committed tokens from the left, once. Rules that take back what they committed (beams, edits) put
nothing before the text is finished; streamers that show drafts (`put_draft`, as transformers'
TextDiffusionStreamer does) get the whole canvas after every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from whet.dlm.eos import is_eos
from whet.dlm.state import Rows
from whet.errors import OptionError


class CommittedText:
    """An `on_commit` that feeds a transformers streamer (`put`, `end`, and `put_draft` if any).

    end_ids: tokens after which the text is over; what lies behind them is not put. revises: the
    decoder's `options.revises`. The prompt is put first, as transformers does. One prompt only.
    """

    def __init__(self, streamer: Any, *, end_ids: Sequence[int], revises: bool = False) -> None:
        self.streamer, self.end_ids, self.revises = streamer, list(end_ids), revises
        self.sent: int | None = None
        self.ended = False

    def __call__(self, step: int, rows: Rows) -> None:
        """After a step of the loop. Errors: OptionError for more than one prompt."""
        if len(rows) > 1:
            raise OptionError(f"a streamer shows one text, the batch has {len(rows)}")
        if self.ended:
            return
        own = rows.pending[0] | (rows.commit_step[0] >= 0)
        begin = rows.start + int(own.int().argmax())
        if self.sent is None:
            self.streamer.put(rows.tokens[:, int(rows.first[0]) : begin].cpu())
            self.sent = begin
        done = int(rows.left()[0]) == 0
        pending = rows.pending[0, begin - rows.start :]
        ready = begin + int(pending.logical_not().long().cumprod(0).sum())
        over = is_eos(rows.tokens[0, begin:ready], self.end_ids).nonzero()[:, 0]
        # The run is cut behind the token that ends the text, which itself is put.
        limit = begin + int(over[0]) + 1 if len(over) else ready
        if limit > self.sent and (done or not self.revises):
            self.streamer.put(rows.tokens[0, self.sent : limit].cpu())
            self.sent = limit
        if done or (len(over) and not self.revises):
            self.streamer.end()
            self.ended = True
        elif hasattr(self.streamer, "put_draft"):
            self.streamer.put_draft(torch.as_tensor(rows.tokens[0, self.sent :]).cpu())
