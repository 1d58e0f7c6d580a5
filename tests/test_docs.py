"""The README's first block runs, generated pages are up to date, rows and files agree."""

import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import whet
from whet import catalogue
from whet.compress.method import Job
from whet.errors import OptionError
from whet.measure.record import load

ROOT = Path(__file__).parents[1]


def test_readme_is_short_and_its_code_runs(capsys):
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert "make demo" in text.split("```")[1]
    block = re.search(r"```python\n(.*?)```", text, re.S)
    exec(compile(block.group(1), "README.md", "exec"), {})
    answer = capsys.readouterr().out.strip()
    assert answer.startswith(tuple("1234"))


def test_the_contributing_guides_decoder_works(tiny_llada, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, re.S).group(1)
    # Dataclasses look their module up, so the example needs a real one.
    module = types.ModuleType("contributing_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block, "CONTRIBUTING.md", "exec"), module.__dict__)
    out = tiny_llada.generate(
        torch.tensor([[3, 4, 5]]), custom_generate=module.top_k, k=4, max_new_tokens=8
    )
    assert out.shape == (1, 11)


def test_the_contributing_guides_compression_works(monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    [block] = [b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "Compression)" in b]
    module = types.ModuleType("contributing_compression")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(block, "CONTRIBUTING.md", "exec"), module.__dict__)
    model, _ = whet.load("tiny-ar")
    module.RandomPruning(sparsity=0.25).apply(Job(model=model, batches=()))
    weight = model.model.layers[1].mlp.up_proj.weight
    assert 0.2 < float((weight == 0).float().mean()) < 0.3
    with pytest.raises(OptionError, match="sparsity=2 must be"):
        module.RandomPruning(sparsity=2).check(model)


def test_generated_docs_are_up_to_date():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "build.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", catalogue.methods().values(), ids=lambda m: m.id)
def test_rows_modules_pages_and_records_agree(method):
    for part in method.parts.values():
        module, _, attribute = part.partition(":")
        assert hasattr(importlib.import_module(module), attribute)
    assert (ROOT / "docs" / "reference" / f"{method.id}.md").is_file()
    assert f"reference/{method.id}.md" in (ROOT / "mkdocs.yml").read_text()
    record = ROOT / "results" / "reproduce" / f"{method.id}.json"
    assert (method.kind == "system") == ("reproduce" in method.parts)
    if method.kind == "system":
        assert load(record).level in ("cpu", "gpu")
    else:
        assert not record.exists()


def test_every_record_can_be_read():
    from whet.measure.items import load_items

    found = [p for p in (ROOT / "results").rglob("*.json") if not p.name.endswith(".items.json")]
    assert found
    for path in found:
        record = load(path)
        if record.items is not None:
            load_items(path, record)
