"""ADJUST (arXiv 2509.22738): approximate joint sampling with one small layer on a frozen model.

A masked LM that commits K tokens from one forward draws them independently, off its own joint
distribution; one forward per token draws from the joint at K times the cost. ADJUST keeps the base
as it is and trains one transformer layer g to do for the hidden states what a full forward would
after one more token is known. `sampler` has the layer, `decoding` the decoder that alternates one
full forward and K - 1 light passes, `training` the imitation that makes g.
"""

from whet.dlm.adjust.decoding import Adjust, AdjustProvider, adjust
from whet.dlm.adjust.sampler import AdjustConfig, AdjustSampler, load_sampler
from whet.dlm.adjust.training import AdjustRecipe, AdjustTraining

__all__ = [
    "Adjust",
    "AdjustConfig",
    "AdjustProvider",
    "AdjustRecipe",
    "AdjustSampler",
    "AdjustTraining",
    "adjust",
    "load_sampler",
]
