"""Layer pruning: drop whole decoder blocks, chosen by one of nine criteria.

"On the Limits of Layer Pruning for Generative Reasoning in LLMs", arXiv 2602.01997. A shallower
model is a stock model, faster on any engine. Multiple choice survives it better than answers that
take many steps do, so it is measured on both; `whet.compress.heal` is the paper's other half.

    LayerPruning(criterion="cosine", n=4).apply(job)

From what a block does to the stream, in one pass over the calibration prompts (`observe`):

- cosine: the blocks with the largest cosine between input and output, one shot (ShortGPT, arXiv
  2403.03853, whose block influence is 1 - cosine). Mean over the tokens of each prompt, then over
  prompts, as the paper's analysis does; `mean="token"` is ShortGPT's.
- angular: the n consecutive blocks between whose ends the last token turns least (Gromov et al.,
  arXiv 2403.17887). simple: its variant without data, the deepest n but for the last block.

From the model without a block, one after the other (`skip`, `criteria.greedy`):

- iterative: the block without which a task's score stays largest, relative to the full model.
- perplexity: the block without which the loss on held-out text is least (SLEB, arXiv 2402.09025).

Else: reverse (the last n, the paper's strong simple baseline); magnitude (least root mean square
of the weights), taylor (least |gradient x weight|, arXiv 2402.02834) and random as controls.

Deviations: rates in the iterative search come from the caller's evaluator, which should be greedy
or a loss: 100 sampled answers, as in the official code, are off by some four points. The official
merge needs a layer that does not exist where the last one is dropped, and cuts `layer_types` off
at the end instead of indexing it; neither happens here (`whet.models.edits.drop`).
"""

from whet.compress.layer_pruning.criteria import (
    angular_distances,
    angular_window,
    cosines,
    greedy,
    most_redundant,
    reverse,
    simple,
)
from whet.compress.layer_pruning.method import Choice, LayerPruning, ShortGPT
from whet.compress.layer_pruning.observe import Turning, observe
from whet.compress.layer_pruning.skip import losses_without, next_token_loss

__all__ = [
    "Choice",
    "LayerPruning",
    "ShortGPT",
    "Turning",
    "angular_distances",
    "angular_window",
    "cosines",
    "greedy",
    "losses_without",
    "most_redundant",
    "next_token_loss",
    "observe",
    "reverse",
    "simple",
]
