"""What a decoding did: in which step and how surely each token was committed, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from whet.dlm.forward import Forward
    from whet.dlm.loop import Finished


@dataclass
class Trace:
    """Of a batch of P prompts with G positions to fill.

    forwards: model calls of the whole batch. rows: canvases sent through the model. positions:
    tokens fed to it (a cache feeds fewer than the canvas has; 0 where
    a prompt shared its batch with others). commit_step: [P, G], the step (from
    0) that committed each token of the result, -1 for given ones. confidence: [P, G] of committed
    tokens, 0 at given ones. rows_per_step: [T, P], canvases each prompt sent in each step
    (guidance sends each twice); 0 once it is finished. light_per_step: [T, P], those that took a
    light pass (see `adjust`), which rows_per_step leaves out; None where no prompt took any.
    """

    forwards: int = 0
    rows: int = 0
    positions: int = 0
    commit_step: Int[Tensor, "P G"] = field(default_factory=lambda: torch.empty(0, 0).long())
    confidence: Float[Tensor, "P G"] = field(default_factory=lambda: torch.empty(0, 0))
    rows_per_step: Int[Tensor, "T P"] = field(default_factory=lambda: torch.empty(0, 0).long())
    light_per_step: Int[Tensor, "T P"] | None = None

    @classmethod
    def of(cls, done: Sequence[Finished], forward: Forward) -> Trace:
        """The trace of prompts with regions of one length, in order."""
        sent = [torch.tensor(f.rows_per_step) for f in done]
        return cls(
            forwards=forward.forwards,
            rows=forward.rows,
            positions=forward.positions,
            commit_step=torch.stack([f.commit_step for f in done]).cpu(),
            confidence=torch.stack([f.confidence for f in done]).cpu(),
            rows_per_step=torch.nn.utils.rnn.pad_sequence(sent),
            light_per_step=_light(done),
        )

    @classmethod
    def single(cls, done: Finished) -> Trace:
        """The trace of one prompt out of a shared batch: its own steps count as forwards."""
        return cls(
            forwards=sum(rows > 0 for rows in done.rows_per_step),
            rows=sum(done.rows_per_step),
            commit_step=done.commit_step[None].cpu(),
            confidence=done.confidence[None].cpu(),
            rows_per_step=torch.tensor(done.rows_per_step)[:, None],
            light_per_step=_light([done]),
        )

    @property
    def steps(self) -> Int[Tensor, " P"]:
        """Steps in which each prompt took part."""
        part = self.rows_per_step > 0
        return (part if self.light_per_step is None else part | (self.light_per_step > 0)).sum(0)

    @property
    def prompt_rows(self) -> Int[Tensor, " P"]:
        """Canvases each prompt sent through the model."""
        return self.rows_per_step.sum(0)

    def spent_on(self, useful: Bool[Tensor, "P G"]) -> tuple[Tensor, Tensor]:
        """Forwards and rows per prompt, leaving out steps that committed only useless tokens.

        With `useful` = tokens up to the end of the answer, EOS filling does not count as speed.
        A beam's steps are those of its winner.
        """
        idle = self._steps_with(~useful) & ~self._steps_with(useful)
        if self.light_per_step is not None:  # a forward also served the light passes after it
            follows = (self.rows_per_step == 0) & (self.light_per_step > 0)
            for step in reversed(range(len(idle) - 1)):
                idle[step] &= idle[step + 1] | ~follows[step + 1]
        counted = (self.rows_per_step > 0) & ~idle
        return counted.sum(0), (self.rows_per_step * counted).sum(0)

    def _steps_with(self, chosen: Bool[Tensor, "P G"]) -> Bool[Tensor, "T P"]:
        """Steps that committed at least one of the chosen tokens."""
        found = torch.zeros_like(self.rows_per_step, dtype=torch.bool)
        prompt, position = (chosen & (self.commit_step >= 0)).nonzero(as_tuple=True)
        found[self.commit_step[prompt, position], prompt] = True
        return found

    def as_json(self, prompt: int, tokens: list[int], texts: list[str]) -> dict[str, Any]:
        """One prompt's decoding as JSON: per step its rows and what the result got from it."""
        steps: list[dict[str, Any]] = []
        order = self.commit_step[prompt].tolist()
        confidence = self.confidence[prompt].tolist()
        for step in range(int(self.steps[prompt])):
            positions = [i for i, s in enumerate(order) if s == step]
            steps.append(
                {
                    "step": step,
                    "rows": int(self.rows_per_step[step, prompt]),
                    "positions": positions,
                    "tokens": [tokens[i] for i in positions],
                    "texts": [texts[i] for i in positions],
                    "confidences": [round(confidence[i], 6) for i in positions],
                }
            )
        forwards = int((self.rows_per_step[:, prompt] > 0).sum())
        return {"steps": steps, "forwards": forwards, "rows": int(self.prompt_rows[prompt])}


def _light(done: Sequence[Finished]) -> Int[Tensor, "T P"] | None:
    if not any(any(f.light_per_step) for f in done):
        return None
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(f.light_per_step) for f in done])
