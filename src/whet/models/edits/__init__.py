"""Edits: changes of a model's structure, and checkpoints that say them.

    drop_blocks(model, [10, 11])
    keep(model, ffn_axis, units)
    save_model(model, tokenizer, "smaller")

- resize: an axis of roles that has fewer units (`roles.keep`).
- replace: a layer by another kind of layer (`LAYERS`), such as a linear layer by a low-rank one.
- rotate_skip: a residual stream with a basis and a width of its own at every site.
- drop_block, reindex: whole blocks that are gone, the others renumbered (`drop_blocks`).

A model that its stock class can build from its configuration is saved as a stock checkpoint.
Otherwise the configuration gets `edits` and the model_type `whet_<family>`, whose class builds the
stock model and applies them. Which edits there are is read off the model when it is saved.
"""

from whet.models.edits.drop import drop_blocks
from whet.models.edits.saving import Saved, edits_of, empty_stock, save_model
from whet.models.edits.structure import (
    LAYERS,
    Edit,
    Replace,
    Resize,
    build,
    describe,
    replace,
    set_submodule,
)

__all__ = [
    "LAYERS",
    "Edit",
    "Replace",
    "Resize",
    "Saved",
    "build",
    "describe",
    "drop_blocks",
    "edits_of",
    "empty_stock",
    "replace",
    "save_model",
    "set_submodule",
]
