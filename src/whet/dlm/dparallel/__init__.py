"""dParallel: a masked LM learns from its own answers to be certain of many tokens at once.

Source: arXiv 2509.26488, section 3 (certainty-forcing distillation). The model's right answers,
decoded with one token per step, are masked twice: by a random set A of positions in a window and by
the rest of the window. What lies right of the window is masked in both. Of each set S,

    L_S = mean over S of -log p(y_i)  +  beta · mean over C of H(softmax(logits_i / T)),

with C the positions of S at which the likeliest token is the answer's: the model keeps its answers
and becomes sure of those that it has right. The windows are blocks (the form for LLaDA) or the
whole response (for Dream). What comes out is an ordinary checkpoint; the entropy threshold decodes
it in fewer forwards.

`certainty`: masks and loss. `answers`: what the teacher answers, recorded and read back.
`training`: the recipe and the run. Each says where it deviates from the paper or its code.
"""

from whet.dlm.dparallel.answers import Answerer, OwnAnswers, read_answers, record_answers
from whet.dlm.dparallel.certainty import Masks, certainty_forcing, complementary_masks
from whet.dlm.dparallel.training import DParallelRecipe, DParallelTraining

__all__ = [
    "Answerer",
    "DParallelRecipe",
    "DParallelTraining",
    "Masks",
    "OwnAnswers",
    "certainty_forcing",
    "complementary_masks",
    "read_answers",
    "record_answers",
]
