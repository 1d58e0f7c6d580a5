"""`whet_<family>`: stock classes that apply `config.edits` when they are built.

One configuration class and one class per kind of model for every family that roles are known
for, made on first use and found by name in this module, so that they pickle. A checkpoint with
edits has the model_type `whet_llama`, so that it fails loudly where whet is not imported.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from whet.errors import CheckpointError, OptionError
from whet.models.edits.structure import build, from_json

# Kinds of model: transformers' Auto classes, by the tables that name the stock classes.
_KINDS = {
    "AutoModel": "MODEL_MAPPING_NAMES",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}


# The one class of diffusers' that roles are known for.
DENOISER = "DiTTransformer2DModel"


def diffusers() -> Any:
    """The module. Errors: OptionError where it is not installed."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise OptionError("this needs diffusers: pip install 'whet[diffusers]'") from error


def is_denoiser(kind: Any) -> bool:
    """Whether a class is diffusers' DiT, or the one with edits."""
    return any(base.__name__ == DENOISER for base in kind.__mro__)


def _stock_types() -> list[str]:
    """Types of transformers' own that can be edited."""
    from transformers import CONFIG_MAPPING

    from whet.models.roles import FAMILIES

    named = (name for family in FAMILIES for name in family.model_types)
    return [name for name in named if name in CONFIG_MAPPING._mapping]


@functools.cache
def _stock_configs() -> dict[str, Any]:
    from transformers import CONFIG_MAPPING

    from whet.models.dream import DreamConfig
    from whet.models.llada import LLaDAConfig
    from whet.models.sdar import SDARConfig

    found = {name: CONFIG_MAPPING[name] for name in _stock_types()}
    return found | {c.model_type: c for c in (LLaDAConfig, DreamConfig, SDARConfig)}


@functools.cache
def _stock_models() -> dict[str, dict[str, Any]]:
    """model_type -> Auto class -> stock class."""
    from transformers.models.auto import modeling_auto

    from whet.models.dream import DreamModel
    from whet.models.llada import LLaDAModelLM
    from whet.models.sdar import SDARForCausalLM

    found: dict[str, dict[str, Any]] = {}
    for name in _stock_types():
        for auto, table in _KINDS.items():
            known = getattr(modeling_auto, table)
            if name in known:
                mapping = getattr(modeling_auto, auto)._model_mapping
                stock = mapping[_stock_configs()[name]]
                found.setdefault(name, {})[auto] = stock[0] if isinstance(stock, tuple) else stock
    for stock in (LLaDAModelLM, DreamModel):
        autos = ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")
        found[stock.config_class.model_type] = dict.fromkeys(autos, stock)
    found["sdar"] = {"AutoModelForCausalLM": SDARForCausalLM}
    return found


def edited_config(stock: Any) -> Any:
    """The configuration class with edits that belongs to a stock configuration class."""
    return _class(f"Whet{stock.__name__}", stock)


def edited_class(stock: Any) -> Any:
    """The class with edits that belongs to a stock class, or the class itself if it is one.

    Errors: OptionError for a class that has none.
    """
    if issubclass(stock, Edited):
        return stock
    if is_denoiser(stock):
        return _denoiser(f"Whet{DENOISER}")
    if stock not in _bases().values():
        raise OptionError(
            f"a changed {stock.__name__} cannot be saved: only stock models of the families that "
            "roles know can, as base, causal, masked or sequence classification model"
        )
    return _class(f"Whet{stock.__name__}", stock)


def stock_class(kind: Any) -> Any:
    """The stock class behind a class with edits, or the class itself."""
    return kind.__mro__[2] if issubclass(kind, Edited) else kind


def _denoiser(name: str) -> Any:
    """diffusers' DiT with one more entry in its configuration, `edits`."""
    if name in globals():
        return globals()[name]
    stock = getattr(diffusers(), DENOISER)
    configuration = importlib.import_module("diffusers.configuration_utils")

    def start(self: Any, *args: Any, edits: Any = (), **kwargs: Any) -> None:
        stock.__init__(self, *args, **kwargs)
        _apply(self, edits)

    given = inspect.signature(stock.__init__)
    entry = inspect.Parameter("edits", inspect.Parameter.KEYWORD_ONLY, default=())
    signature = given.replace(parameters=[*given.parameters.values(), entry])
    start.__signature__ = signature  # type: ignore[attr-defined]
    about = f"{DENOISER} whose shape `config.edits` changes."
    fields = {
        "__module__": __name__,
        "__doc__": about,
        "__init__": configuration.register_to_config(start),
    }
    globals()[name] = type(name, (Edited, stock), fields)
    return globals()[name]


def auto_class(stock: str) -> str:
    """The Auto class that gives a stock class, by its name. Errors: OptionError."""
    for kinds in _stock_models().values():
        for auto, kind in sorted(kinds.items(), reverse=True):
            if kind.__name__ == stock:
                return auto
    raise OptionError(f"no Auto class gives a {stock}")


class Edited:
    """What classes with edits have before their stock class: edits applied after building."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        _apply(self, config.edits)


def _apply(model: Any, edits: Any) -> None:
    try:
        build(model, from_json(edits))
    except OptionError as error:
        raise CheckpointError(f"edits of the configuration: {error}") from error


class EditedConfig:
    """What configurations with edits have before their stock class. edits: see `structure`."""

    edits: Any = ()


@functools.cache
def _bases() -> dict[str, Any]:
    """Name of a class with edits -> its stock class; configurations and models."""
    models = {m for kinds in _stock_models().values() for m in kinds.values()}
    return {f"Whet{stock.__name__}": stock for stock in (*_stock_configs().values(), *models)}


def _class(name: str, stock: Any) -> Any:
    made = globals().get(name)
    if made is None:
        about = f"{stock.__name__} whose shape `config.edits` changes."
        fields = {"__module__": __name__, "__doc__": about}
        if hasattr(stock, "forward"):
            fields["config_class"] = edited_config(stock.config_class)
            made = type(name, (Edited, stock), fields)
        else:
            fields["model_type"] = f"whet_{stock.model_type}"
            made = type(name, (EditedConfig, stock), fields)
        globals()[name] = made
    return made


def __getattr__(name: str) -> Any:
    if name == f"Whet{DENOISER}":
        return _denoiser(name)
    if name.startswith("Whet") and name in _bases():
        return _class(name, _bases()[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def edited_types() -> dict[str, tuple[Any, Any]]:
    """model_type -> (configuration class, class) of every language model with edits."""
    found = {}
    for name, kinds in _stock_models().items():
        stock = kinds.get("AutoModelForCausalLM")
        if stock is not None:
            config = edited_config(_stock_configs()[name])
            found[f"whet_{name}"] = (config, edited_class(stock))
    return found


def register_edited() -> None:
    """Make the Auto classes know them, and the tokenizers of their stock types."""
    import transformers
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    for name, kinds in _stock_models().items():
        stock = _stock_configs()[name]
        config = edited_config(stock)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        for auto, kind in kinds.items():
            getattr(transformers, auto).register(config, edited_class(kind), exist_ok=True)
        try:
            tokenizer = TOKENIZER_MAPPING[stock]
        except KeyError:
            continue
        if isinstance(tokenizer, tuple):
            tokenizer = next((t for t in reversed(tokenizer) if t is not None), None)
        if tokenizer is not None:
            AutoTokenizer.register(config, fast_tokenizer_class=tokenizer, exist_ok=True)
