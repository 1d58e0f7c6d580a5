"""The training itself: batches of rows, completion-only loss, one player."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from whet import rng as rng_
from whet.compress.heal.data import Row
from whet.data.mixture import cuts
from whet.errors import OptionError
from whet.fit import FitSettings, Player
from whet.fit.losses import cross_entropy, distillation
from whet.fit.schedules import warmup_constant


@dataclass(frozen=True)
class HealBatch:
    """Rows padded on the right. learnt: True at tokens that are to be predicted."""

    tokens: Int[Tensor, "B L"]
    attention_mask: Bool[Tensor, "B L"]
    learnt: Bool[Tensor, "B L"]
    step: int

    def rows(self, part: slice) -> HealBatch:
        """Some of the rows, padded as they are."""
        return HealBatch(self.tokens[part], self.attention_mask[part], self.learnt[part], self.step)


def collate(rows: Sequence[Row], *, pad: int, step: int = 0) -> HealBatch:
    """One batch. The first token of a row has nothing to be predicted from."""
    width = max(len(row.prompt) + len(row.response) for row in rows)
    tokens = torch.full((len(rows), width), pad)
    mask, learnt = (torch.zeros(len(rows), width, dtype=torch.bool) for _ in range(2))
    for place, row in enumerate(rows):
        ids = torch.tensor([*row.prompt, *row.response])
        tokens[place, : len(ids)] = ids
        mask[place, : len(ids)] = True
        learnt[place, max(1, len(row.prompt)) : len(ids)] = True
    return HealBatch(tokens, mask, learnt, step)


class HealTraining:
    """One player, one turn: the model learns the rows.

    The player holds nothing but what is trained, so that checkpoints of a LoRA are small.
    teacher: predictions to stay close to, with weight `distil` (None: none).
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Sequence[Row],
        settings: FitSettings,
        *,
        batch_size: int,
        pad: int,
        teacher: nn.Module | None = None,
        distil: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        if not rows:
            raise OptionError("there is nothing to learn: rows is empty")
        self.model, self.rows, self.teacher = model.train(), rows, teacher
        self.batch_size, self.pad, self.seed = batch_size, pad, settings.seed
        self.distil, self.temperature = distil, temperature
        trained = nn.ParameterList([p for p in model.parameters() if p.requires_grad])
        optimizer = torch.optim.AdamW(
            trained,
            lr=settings.learning_rate,
            betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay,
        )
        schedule = warmup_constant(settings.warmup)
        player = Player(trained, optimizer, schedule, None, settings.clip)
        self.players: Mapping[str, Player] = {"model": player}

    def turns(self, step: int) -> Sequence[str]:
        """The model, every step."""
        return ("model",)

    def batch(self, step: int) -> HealBatch:
        """The rows of a step: epochs in orders of their own."""
        orders: dict[int, np.ndarray[Any, Any]] = {}
        picked = []
        for number in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, place = divmod(number, len(self.rows))
            if epoch not in orders:
                orders[epoch] = rng_.keyed(self.seed, "epoch", epoch).permutation(len(self.rows))
            picked.append(self.rows[int(orders[epoch][place])])
        return collate(picked, pad=self.pad, step=step)

    def split(self, batch: HealBatch, turn: str, parts: int) -> list[tuple[HealBatch, float]]:
        """Parts by rows with their share of the learnt tokens, over which the loss is a mean."""
        found = []
        for rows in cuts(len(batch.tokens), parts):
            if rows.start < rows.stop:
                part = batch.rows(rows)
                found.append((part, int(part.learnt.sum()) / int(batch.learnt.sum())))
        return found

    def tokens(self, batch: HealBatch) -> int:
        """Real tokens (padding not counted)."""
        return int(batch.attention_mask.sum())

    def loss(self, batch: HealBatch, turn: str) -> tuple[Tensor, dict[str, float]]:
        """Mean loss in nats per learnt token."""
        model: Any = self.model
        device = model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # Dropout from its own key, so that a run that goes on draws what it would have drawn.
            torch.manual_seed(rng_.key_bits(self.seed, "dropout", batch.step, bits=64) >> 1)
            rows, targets = self._predictions(model, batch)
        right = float((rows.detach().argmax(-1) == targets).float().mean())
        if self.teacher is None:
            return cross_entropy(rows, targets).mean(), {"token_accuracy": right}
        with torch.no_grad():
            theirs, _ = self._predictions(self.teacher, batch)
        losses = distillation(
            theirs, rows, targets, temperature=self.temperature, weight=self.distil
        )
        return losses.mean(), {"token_accuracy": right}

    def _predictions(self, model: Any, batch: HealBatch) -> tuple[Tensor, Tensor]:
        """Logits [N, V] of the learnt tokens, and these."""
        tokens = batch.tokens.to(model.device)
        learnt = batch.learnt[:, 1:].to(model.device)
        logits = model(
            input_ids=tokens[:, :-1],
            attention_mask=batch.attention_mask[:, :-1].long().to(model.device),
            use_cache=False,
        ).logits
        return logits[learnt], tokens[:, 1:][learnt]
