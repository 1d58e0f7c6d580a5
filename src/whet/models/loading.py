"""Load a checkpoint directory or hub repository in the published layout, or say what is wrong.

Everything that can be wrong is checked against the files before any weight is read: names and
shapes of tensors, truncated shards, pickle files. No remote code runs and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from whet.errors import CheckpointError, OptionError, nearest

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def load_checkpoint(
    source: str | Path, *, dtype: torch.dtype | str = "auto", device: str | torch.device = "cpu"
) -> tuple[Any, Any]:
    """Model (in eval mode) and tokenizer of a directory, or of a hub repository `owner/name`.

    dtype "auto" keeps the stored one, except that float16 weights become float32 on a CPU, where
    half precision is slow. Errors: CheckpointError naming the file or tensor.
    """
    from transformers import AutoTokenizer

    from whet.models.denoiser import TRAITS
    from whet.models.registry import is_encoder, register

    register()  # Dream's tokenizer class is found through it
    directory = resolve_directory(source)
    model_class, config = read_config(directory)
    named = config.model_type in TRAITS  # elsewhere transformers may convert names when it loads
    found, stored = read_shards(directory)
    packed = getattr(config, "quantization_config", None) is not None
    if named and not packed:  # packed weights have other names
        verify_files(directory, model_class, config, found)
    if dtype == "auto" and torch.device(device).type == "cpu" and stored == torch.float16:
        dtype = torch.float32
    try:
        model, info = model_class.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    except (RuntimeError, ValueError) as error:  # an impossible size, tensors that do not join
        gone = _lost_experts(found)
        why = f"{_count(gone, 'tensor')} missing: {_some(gone)}" if gone else _one_line(error)[:300]
        raise CheckpointError(f"{directory}: {why}") from error
    for name, has, asked in sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"{directory}: tensor {name} has shape {tuple(has)}, the configuration asks for "
            f"{tuple(asked)}"
        )
    if info["missing_keys"]:
        gone = sorted(info["missing_keys"])
        raise CheckpointError(f"{directory}: {_count(gone, 'tensor')} missing: {_some(gone)}")
    if not named and is_encoder(model):
        raise CheckpointError(
            f"{directory}: model_type {config.model_type!r} with is_decoder false reads both ways: "
            "it is neither autoregressive nor a masked diffusion language model"
        )
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{directory}: tensor {name} holds NaN or infinite values")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory}: no usable tokenizer ({_first_line(error)})") from error
    if model.dtype == torch.float64 and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # grouped kernels have no float64
    # Padding belongs on the left; decoders called through `generate()` find the tokenizer's size
    # and its end-of-turn token through the model.
    tokenizer.padding_side = "left"
    model.tokenizer = tokenizer
    model.to(device).eval()
    if named and packed:  # unpacked on the model's first call, and decoders call its parts
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    return model, tokenizer


def resolve_directory(source: str | Path) -> Path:
    """A local directory as it is; `owner/name` through the hub's cache (downloads if absent)."""
    path = Path(source)
    if path.is_dir():
        return path
    text = str(source)
    if path.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise CheckpointError(f"{text}: not a directory, a zoo model or a hub name (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(text, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{text}: no such local directory, and the hub did not give it ({_first_line(error)})"
        ) from error


def read_config(directory: Path) -> tuple[Any, Any]:
    """Class and configuration for a checkpoint directory; `auto_map` is ignored."""
    from huggingface_hub.errors import StrictDataclassError

    from whet.models.registry import loadable_class, loadable_types

    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{directory}: no config.json")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model_type = str(raw["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a model configuration ({error!r})") from error
    known = loadable_types()
    if model_type not in known:
        raise CheckpointError(
            f"{path}: model_type {model_type!r} is not supported: {_nearest(model_type, known)}"
        )
    raw.pop("auto_map", None)
    config_class, model_class = loadable_class(model_type)
    try:
        return model_class, config_class.from_dict(raw)
    except (CheckpointError, StrictDataclassError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {_one_line(error)}") from error


def _nearest(model_type: str, known: list[str]) -> str:
    clause = nearest(model_type, known)
    return clause if len(clause) < 200 else "no masked or autoregressive language model has it"


def verify_files(
    directory: Path, model_class: Any, config: Any, found: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the tensors in the files with those the model needs. found: their shapes by name.

    Errors: CheckpointError for missing, extra or mis-shaped tensors.
    """
    try:
        with torch.device("meta"):
            model = model_class(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory}/config.json: no model can be built from it ({_one_line(error)})"
        ) from error
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    missing = sorted(set(wanted) - set(found) - tied)
    extra = sorted(set(found) - set(wanted))
    shaped = [n for n in wanted if n in found and found[n] != wanted[n]]
    if missing:
        raise CheckpointError(f"{directory}: {_count(missing, 'tensor')} missing: {_some(missing)}")
    if extra:
        raise CheckpointError(f"{directory}: {_count(extra, 'unknown tensor')}: {_some(extra)}")
    if shaped:
        first = shaped[0]
        raise CheckpointError(
            f"{directory}: tensor {first} has shape {found[first]}, "
            f"the configuration asks for {wanted[first]}"
        )


def read_shards(directory: Path) -> tuple[dict[str, tuple[int, ...]], torch.dtype]:
    """Names and shapes of all tensors in the files, and the stored dtype.

    Errors: CheckpointError for pickles, missing or truncated shards.
    """
    found: dict[str, tuple[int, ...]] = {}
    dtypes: set[torch.dtype] = set()
    for shard in _shards(directory):
        try:
            with safe_open(shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    view = file.get_slice(name)
                    found[name] = tuple(view.get_shape())
                    dtypes.add(_DTYPES.get(view.get_dtype(), torch.float32))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{shard}: damaged or truncated safetensors file ({_first_line(error)})"
            ) from error
    return found, dtypes.pop() if len(dtypes) == 1 else torch.float32


def _lost_experts(names: Iterable[str]) -> list[str]:
    """Tensors of experts that other experts of the same layers have."""
    seen: dict[tuple[str, str], set[str]] = {}
    for name in names:
        head, _, tail = name.partition(".experts.")
        number, _, rest = tail.partition(".")
        if number.isdecimal():
            seen.setdefault((head, rest), set()).add(number)
    every = set().union(*seen.values())
    return sorted(
        f"{head}.experts.{number}.{rest}"
        for (head, rest), own in seen.items()
        for number in every - own
    )


_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def _shards(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index}: not a shard index ({error!r})") from error
        gone = [n for n in names if not (directory / n).is_file()]
        if gone:
            raise CheckpointError(f"{directory}: {_count(gone, 'shard')} missing: {_some(gone)}")
        return [directory / n for n in names]
    if single.is_file():
        return [single]
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{directory}: only pickle files ({_some(pickles)}), which can run code when read: "
            "convert them to safetensors"
        )
    raise CheckpointError(f"{directory}: no model.safetensors and no model.safetensors.index.json")


def _some(names: list[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _count(things: list[str], noun: str) -> str:
    return f"{len(things)} {noun}{'s' if len(things) != 1 else ''}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def check_dtype(name: str) -> torch.dtype | str:
    """A dtype by its command-line name. Errors: OptionError with the allowed names."""
    known = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
    known |= {"float16": torch.float16}
    if name == "auto":
        return name
    if name not in known:
        raise OptionError(f"dtype={name!r} is not allowed: {nearest(name, ['auto', *known])}")
    return known[name]
