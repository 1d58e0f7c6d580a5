"""Plain next-token training, the baseline every faster decoder and every compression starts from.

Cross-entropy on the response and one end-of-text token; the prompt is only read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from whet.data.mixture import ResponseBatch
from whet.zoo.training import TaskTraining


def learnt_positions(part: ResponseBatch, eos_token_id: int) -> Bool[Tensor, "B L"]:
    """True at response tokens up to and with the first end-of-text token."""
    ends = (part.tokens == eos_token_id) & part.response
    return part.response & (ends.long().cumsum(-1) - ends.long() == 0)


class CausalTraining(TaskTraining):
    """One player, one turn: `model` minimises the cross-entropy of the response."""

    method = "causal"

    def batch(self, step: int) -> list[ResponseBatch]:
        """Sub-batches of one optimizer step."""
        return self.mixture.batch(step)

    def tokens(self, batch: list[ResponseBatch]) -> int:
        """Real tokens (padding not counted)."""
        eos = self.tokenizer.eos_token_id
        return sum(
            int((part.attention_mask & ~part.response).sum() + learnt_positions(part, eos).sum())
            for part in batch
        )

    def loss(self, batch: list[ResponseBatch], turn: str) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy in nats per response token."""
        losses, right = [], 0
        for part in batch:
            positions = (part.attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            logits = self.model(
                input_ids=part.tokens[:, :-1],
                attention_mask=part.attention_mask[:, :-1].long(),
                position_ids=positions[:, :-1],
                use_cache=False,
            ).logits
            wanted = learnt_positions(part, self.tokenizer.eos_token_id)[:, 1:]
            chosen, targets = logits[wanted].float(), part.tokens[:, 1:][wanted]
            losses.append(F.cross_entropy(chosen, targets, reduction="none"))
            right += int((chosen.detach().argmax(-1) == targets).sum())
        loss = torch.cat(losses)
        return loss.mean(), {"token_accuracy": right / len(loss)}
