"""NAP: several reasoning paths per text, trained for and decoded side by side.

arXiv 2602.23225. `decode`: the schedule that makes every path advance in every step. `layout`:
paths, their tags and the slots they lie in. `data`: sets of paths with a summary, made by a model,
an endpoint or a task's own solver. `objective`, `training`: fine-tuning on them. `texts`: prompts
in, paths and summaries out.
"""

from whet.dlm.nap.decode import Nap, RegionSelector, nap, per_region, runs

__all__ = ["Nap", "RegionSelector", "nap", "per_region", "runs"]
