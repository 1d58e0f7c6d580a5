"""The training loop and what it needs: players, schedules, EMA, checkpoints, trackers."""

from whet.fit.loop import FitSettings, Player, TrainingMethod, fit

__all__ = ["FitSettings", "Player", "TrainingMethod", "fit"]
