"""Programs that a model wrote, run where they can do no harm, with a verdict hard to forge."""

from whet.evaluate.sandbox.run import (
    Execution,
    Limits,
    Verdict,
    namespaces_available,
    run_code,
    run_many,
)

__all__ = ["Execution", "Limits", "Verdict", "namespaces_available", "run_code", "run_many"]
