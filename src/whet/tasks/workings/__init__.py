"""Tasks whose working can be written in several ways, each of them a way to an answer."""

from whet.tasks.workings.drafts import Drafts
from whet.tasks.workings.modular_sum import ModularSum

TASKS = (ModularSum, Drafts)

__all__ = ["TASKS", "Drafts", "ModularSum"]
