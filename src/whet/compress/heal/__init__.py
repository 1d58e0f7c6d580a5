"""Healing: a short fine-tuning after parts of a model were cut away.

    Heal(data="self", steps=200).apply(job)

- data="self": the model as it was before the chain answers prompts, and what is left of it learns
  these responses (self-generated responses, arXiv 2602.01997), so that no training data are
  needed and the style of the answers stays. Only the response and its end are learnt; responses
  that were cut off are dropped.
- data="answers": known answers to the prompts, in the same way.
- data="text": next tokens of the calibration text.

LoRA on attention and MLP (rank 0: all weights), merged into the weights as they are; learning
rate constant after a warm-up, as in the paper. `distil` adds the KL divergence to the original
model's predictions. Responses, checkpoints and the result are kept in the step's folder, so that
a run that was killed goes on.

Deviations: weights stay in their own type instead of 4-bit ones (QLoRA), into which a merge would
lose quality; a number of steps instead of one epoch.
"""

from whet.compress.heal.data import Row, read_responses, record_responses, text_rows
from whet.compress.heal.method import Heal
from whet.compress.heal.targets import block_linears
from whet.compress.heal.training import HealBatch, HealTraining, collate

__all__ = [
    "Heal",
    "HealBatch",
    "HealTraining",
    "Row",
    "block_linears",
    "collate",
    "read_responses",
    "record_responses",
    "text_rows",
]
