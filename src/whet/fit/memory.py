"""Training in less memory: mixed precision with loss scaling, activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn

from whet.errors import OptionError
from whet.fit.method import Player
from whet.fit.settings import FitSettings

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(settings: FitSettings, module: nn.Module) -> AbstractContextManager[Any]:
    """The context in which the module's loss is taken (none for "fp32")."""
    dtype = _DTYPES.get(settings.mixed_precision)
    if dtype is None:
        return nullcontext()
    return torch.autocast(_device(module).type, dtype=dtype)


def add_scalers(settings: FitSettings, players: Mapping[str, Player]) -> None:
    """Give every player its loss scaler where float16 needs one."""
    if settings.mixed_precision == "fp16":
        for player in players.values():
            if player.scaler is None:
                player.scaler = torch.amp.GradScaler(_device(player.module).type)


@contextmanager
def activation_checkpointing(
    settings: FitSettings, players: Mapping[str, Player]
) -> Iterator[None]:
    """Run the block with the players' transformer blocks recomputed on the way back.

    Errors: OptionError for a module that does not support it.
    """
    switched: list[Any] = []
    try:
        if settings.activation_checkpointing:
            for name, player in players.items():
                module = cast(Any, player.module)
                if not getattr(module, "supports_gradient_checkpointing", False):
                    raise OptionError(
                        f"activation_checkpointing=True: player {name!r} is a "
                        f"{type(module).__name__}, which does not support it; "
                        "a transformers model with supports_gradient_checkpointing is needed"
                    )
                _named(module, "enable")({"use_reentrant": False})
                switched.append(module)
        yield
    finally:
        for module in switched:
            _named(module, "disable")()


def _named(module: Any, what: str) -> Any:
    # transformers calls it activation checkpointing in newer versions, gradient in older ones.
    newer = getattr(module, f"activation_checkpointing_{what}", None)
    return newer or getattr(module, f"gradient_checkpointing_{what}")


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
