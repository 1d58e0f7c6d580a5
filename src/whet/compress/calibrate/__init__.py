"""Streaming calibration: a model is edited block by block, each from what reaches it.

    def edit(run):
        for name, seen in run.statistics.items():
            linear = run.model.get_submodule(name)
            linear.weight.data = wanda(linear.weight, seen, 0.5).weight

    calibrate(model, batches, edit)

For every block: all batches run through it with collectors attached, which sum in float64 and
leave padding out; the edit changes it; all batches run through the edited block, which gives the
next block's inputs. Weights are in memory or come from a checkpoint folder a block at a time
(`open_model`, `source=`), activations are in memory or in files (`max_memory=`, `folder=`), and
a run that was killed goes on (`folder=`).

Every decoder and encoder that `whet.models.roles` knows. The scheme is that of GPTQ and SparseGPT
(arXiv 2210.17323, 2301.00774): one block in memory, its inputs those of the compressed model.
"""

from whet.compress.calibrate.collect import (
    Call,
    Collector,
    ExpertCollector,
    ExpertStatistics,
    InputCollector,
    StreamCollector,
    StreamStatistics,
    Watch,
    watch_experts,
    watch_inputs,
    watch_nothing,
    watch_stream,
)
from whet.compress.calibrate.engine import (
    Batch,
    Calibration,
    Edit,
    Progress,
    Restore,
    calibrate,
)
from whet.compress.calibrate.passes import BlockRun, Feed
from whet.compress.calibrate.source import Checkpoint, empty_model, open_model, restore_block

__all__ = [
    "Batch",
    "BlockRun",
    "Calibration",
    "Call",
    "Checkpoint",
    "Collector",
    "Edit",
    "ExpertCollector",
    "ExpertStatistics",
    "Feed",
    "InputCollector",
    "Progress",
    "Restore",
    "StreamCollector",
    "StreamStatistics",
    "Watch",
    "calibrate",
    "empty_model",
    "open_model",
    "restore_block",
    "watch_experts",
    "watch_inputs",
    "watch_nothing",
    "watch_stream",
]
