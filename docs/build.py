"""Write what is generated in the docs: a reference page per method, and the pictures.

python docs/build.py            write
python docs/build.py --check    exit with 1 if something is out of date
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from whet import catalogue
from whet.compress.method import Compression
from whet.measure.record import Record, load
from whet.report import words
from whet.report.pages import frontier_of
from whet.zoo import recipes
from whet.zoo.recipe import recipe_method

DOCS = Path(__file__).parent
ROOT = DOCS.parent


def page(method: catalogue.Method) -> str:
    """The reference page of one method: docstring, calls, options, evidence."""
    part = next(iter(method.parts.values()))
    module = importlib.import_module(part.partition(":")[0])
    aliases = "".join(f", also `{a}`" for a in method.aliases)
    paper = (
        f", [arXiv {method.arxiv}](https://arxiv.org/abs/{method.arxiv})" if method.arxiv else ""
    )
    fits = f"; for {', '.join(method.applies_to)}" if method.applies_to else ""
    facts = f"`{method.id}`{aliases}: {method.kind}{paper}{fits}."
    lines = [f"# {method.title or method.id}", "", method.summary, "", facts, ""]
    if "decode" in method.parts:
        lines += _decoder(method)
    if "tasks" in method.parts:
        lines += _tasks(method)
    if "train" in method.parts:
        lines += _training(method)
    if "compress" in method.parts:
        lines += _compression(method)
    lines += ["## Notes", "", inspect.cleandoc(module.__doc__ or ""), ""]
    lines += _evidence(method)
    assert module.__file__ is not None
    source = Path(module.__file__).relative_to(ROOT).as_posix()
    lines += [f"Source: `{source}`", ""]
    return "\n".join(lines)


def _decoder(method: catalogue.Method) -> list[str]:
    options = catalogue.resolve(method.id, "decode")
    return [
        "## Use",
        "",
        "```console",
        _command(method),
        "```",
        "",
        "```python",
        *_call(method),
        "```",
        "",
        *_options(options),
    ]


def _options(options: Any) -> list[str]:
    """A dataclass of options as a table, and what its docstrings say about them."""
    hints = typing.get_type_hints(options)
    rows = [
        f"| `{f.name}` | {_type(hints[f.name])} | {_default(f)} |"
        for f in dataclasses.fields(options)
    ]
    return [
        "## Options",
        "",
        *(["| option | type | default |", "|---|---|---|", *rows, ""] if rows else []),
        *(
            inspect.cleandoc(c.__doc__ or "") + "\n"
            for c in inspect.getmro(options)
            if c.__module__.startswith("whet.") and c.__doc__ and c is not Compression
        ),
    ]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    factory = field.default_factory
    return "needed" if factory is dataclasses.MISSING else f"`{factory()!r}`"


def _compression(method: catalogue.Method) -> list[str]:
    options = catalogue.resolve(method.id, "compress")
    out = f"runs/{method.id}"
    return [
        "## Use",
        "",
        "```console",
        f"whet compress tiny-ar --step {method.id} --data tasks:scratchpad --out {out}",
        "```",
        "",
        f"A step of the stage `{options.stage}`"
        + (", from calibration data" if options.calibrates else ", without calibration data")
        + (", also a block at a time (`--max-memory`)." if options.streams else "."),
        "",
        *_options(options),
    ]


def _tasks(method: catalogue.Method) -> list[str]:
    lines = [
        "## Use",
        "",
        "```console",
        f"whet evaluate --model tiny-ar --tasks {method.id}:easy --sizes 4,8 --limit 20",
        f"whet evaluate --tasks {method.id} --mode wide --list",
        "```",
        "",
        "## Tasks",
        "",
        "| suite | task | variations | sizes (default) | what is asked |",
        "|---|---|---|---|---|",
    ]
    for level, tasks in catalogue.resolve(method.id, "tasks").items():
        for task in tasks:
            names = task.variations or ("",)
            sizes = sorted({s for n in names for s in task.default_sizes(n, "faithful")})
            shown = ", ".join(map(str, sizes))
            lines.append(
                f"| {level} | `{task.id}` | {', '.join(f'`{n}`' for n in task.variations)} | "
                f"{shown} | {task.summary} |"
            )
    return [*lines, ""]


def _training(method: catalogue.Method) -> list[str]:
    training = catalogue.resolve(method.id, "train")
    own = [n for n, path in recipes().items() if recipe_method(path) == method.id]
    config = own[0] if own else "recipe.yaml"
    return [
        "## Training",
        "",
        "```console",
        f"whet train {method.id} --config {config} --out runs/mine",
        "```",
        "",
        f"Recipes in the package: {', '.join(f'`{n}`' for n in own) or 'none'}.",
        "",
        "| key | type | default |",
        "|---|---|---|",
        *_keys(training.recipe_type, ""),
        "",
        *_sections(training.recipe_type),
    ]


def _keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None:
            yield from _keys(inner, f"{prefix}{name}.")
            continue
        default = "needed" if field.is_required() else f"`{field.get_default()!r}`"
        yield f"| `{prefix}{name}` | {_type(field.annotation)} | {default} |"


def _sections(section: type[BaseModel]) -> Iterator[str]:
    """What the sections of a recipe say about their keys."""
    yield inspect.cleandoc(section.__doc__ or "") + "\n"
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None and name != "fit":
            yield from (f"`{name}`: {text}" for text in _sections(inner))


def _section(annotation: Any) -> type[BaseModel] | None:
    choices = (annotation, *typing.get_args(annotation))
    found = (c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
    return next(found, None)


def _command(method: catalogue.Method) -> str:
    if "llada" in method.applies_to:
        return f'whet generate --decoder {method.id} "sudoku 1.3..2..4...1..3="'
    return f'whet generate --model path/to/{method.applies_to[0]} --decoder {method.id} "..."'


def _call(method: catalogue.Method) -> list[str]:
    if "generate" in method.parts:
        module, _, name = method.parts["generate"].partition(":")
        call = f"model.generate(ids, custom_generate={name}, max_new_tokens=16)"
        return [f"from {module} import {name}", "", call]
    module, _, name = method.parts["decode"].partition(":")
    return [
        "from whet.dlm.canvas import denoise",
        f"from {module} import {name}",
        "",
        f"tokens, trace = denoise(model, canvas, options={name}())",
    ]


def _type(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin is typing.Annotated:
        return _type(parts[0])
    if origin is not None:
        return f"{origin.__name__}[{', '.join(_type(part) for part in parts)}]"
    return "None" if hint is type(None) else str(getattr(hint, "__name__", hint))


def _evidence(method: catalogue.Method) -> list[str]:
    path = ROOT / "results" / "reproduce" / f"{method.id}.json"
    if "reproduce" not in method.parts or not path.is_file():
        return []
    record = load(path)
    verdict = words.VERDICTS[record.verdict] if record.verdict else "no verdict"
    lines = [
        "## Evidence",
        "",
        f"`whet reproduce {method.id}`: **{verdict}** ({record.created[:10]}).",
        "",
    ]
    lines += ["| claim | measured | target | result |", "|---|---|---|---|"]
    for claim in record.claims:
        unit = words.unit_of(record, claim.metric)
        measured = words.effect(claim.kind, claim.value, claim.ci, unit)
        target, result = words.target(claim, unit), words.MARKS[claim.ok]
        lines.append(f"| {claim.text or claim.name} | {measured} | {target} | {result} |")
    lines += ["", *_arms(record), "", *(f"* {note}" for note in record.notes), ""]
    return lines


def _arms(record: Record) -> list[str]:
    usual = ("accuracy", "forwards", "rows", "tokens_per_forward", "work")
    names = [n for n in usual if any(n in arm.metrics for arm in record.arms)]
    names = names or list(dict.fromkeys(n for arm in record.arms for n in arm.metrics))[:6]
    lines = ["| arm | " + " | ".join(n.replace("_", " ") for n in names) + " |"]
    lines.append("|---" * (len(names) + 1) + "|")
    for arm in record.arms:
        cells = [words.metric(arm.metrics[n]) if n in arm.metrics else "" for n in names]
        lines.append(f"| `{arm.name}` | " + " | ".join(cells) + " |")
    return lines


def index() -> str:
    """The list of methods."""
    lines = ["# Reference", "", "Generated from the catalogue, the docstrings and the records.", ""]
    lines += ["| method | kind | paper | summary |", "|---|---|---|---|"]
    for m in catalogue.methods().values():
        paper = f"[{m.arxiv}](https://arxiv.org/abs/{m.arxiv})" if m.arxiv else ""
        lines.append(f"| [{m.id}]({m.id}.md) | {m.kind} | {paper} | {m.summary} |")
    return "\n".join(lines) + "\n"


def files() -> dict[Path, str]:
    """Everything that is generated: path -> content."""
    out = {DOCS / "reference" / "index.md": index()}
    for method in catalogue.methods().values():
        out[DOCS / "reference" / f"{method.id}.md"] = page(method)
    record = ROOT / "results" / "benchmarks" / "decode.json"
    if record.is_file():
        svg = frontier_of(load(record))
        if svg is not None:
            out[DOCS / "assets" / "decode-frontier.svg"] = svg.rstrip() + "\n"
    return out


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    old = [p for p, text in files().items() if not p.is_file() or p.read_text("utf-8") != text]
    if check and old:
        sys.exit("out of date, run `python docs/build.py`: " + ", ".join(p.name for p in old))
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files()[path], encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
