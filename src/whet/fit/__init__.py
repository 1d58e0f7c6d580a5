"""The training loop and what it needs: players, schedules, EMA, checkpoints, trackers.

Around the loop: `losses` (worked out in chunks of rows), `rounds` (collect, fit, promote), `local`
(block by block) and `distributed` (several processes).
"""

from whet.fit.loop import fit
from whet.fit.method import Player, TrainingMethod
from whet.fit.settings import FitSettings

__all__ = ["FitSettings", "Player", "TrainingMethod", "fit"]
