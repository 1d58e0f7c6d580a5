"""Tasks whose working can be written in several orders, each of them a way to the same answer."""

from whet.tasks.workings.modular_sum import ModularSum

TASKS = (ModularSum,)

__all__ = ["TASKS", "ModularSum"]
