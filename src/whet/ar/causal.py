"""Plain next-token training, the baseline every faster decoder and every compression starts from.

Cross-entropy on the response and one end-of-text token; the prompt is only read. Source: Bengio et
al., "A neural probabilistic language model", JMLR 3, 2003, section 2; today's models changed the
function, not the objective. Deviations: none.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from whet.data.mixture import ResponseBatch, cuts
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

    def split(
        self, batch: list[ResponseBatch], turn: str, parts: int
    ) -> list[tuple[list[ResponseBatch], float]]:
        """Parts of every sub-batch with their share of the learnt tokens, over which the loss is a
        mean."""
        eos = self.tokenizer.eos_token_id
        learnt = [learnt_positions(part, eos).sum(-1) for part in batch]
        total = sum(int(n.sum()) for n in learnt)
        found = []
        for k in range(parts):
            piece, count = [], 0
            for part, n in zip(batch, learnt, strict=True):
                rows = cuts(len(part.tokens), parts)[k]
                if rows.start < rows.stop:
                    piece.append(part.rows(rows))
                    count += int(n[rows].sum())
            if piece:
                found.append((piece, count / total))
        return found

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
            chosen, targets = logits[wanted], part.tokens[:, 1:][wanted]
            chosen = chosen.float() if chosen.element_size() < 4 else chosen
            losses.append(F.cross_entropy(chosen, targets, reduction="none"))
            right += int((chosen.detach().argmax(-1) == targets).sum())
        loss = torch.cat(losses)
        return loss.mean(), {"token_accuracy": right / len(loss)}
