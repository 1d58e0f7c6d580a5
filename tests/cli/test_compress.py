"""`whet compress` from the outside."""

import functools
import json

import pytest

from tests.compress.checkpoints import bert, llama
from whet.cli._compress import parse_bytes
from whet.errors import OptionError
from whet.measure.record import Metric, load
from whet.models.edits import save_model


@pytest.fixture
def unverified(monkeypatch):
    """Saving and measuring without fresh processes, which other tests pay for."""
    quick = functools.partial(save_model, verify=False)
    monkeypatch.setattr("whet.compress.run.save_model", quick)
    peaks = (2.0, Metric(value=1.0, unit="bytes"))
    monkeypatch.setattr("whet.compress.report._peak", lambda *arguments: peaks)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("models") / "llama", blocks=2)


def test_a_chain_from_the_command_line(whet, source, tmp_path, unverified):
    out = tmp_path / "out"
    base = ("compress", source, "--step", "gptq:bits=4,group_size=16", "--data", "tasks:sudoku")
    code, shown, err = whet(*base, "--count", 4, "--n", 4, "--out", out)
    assert code == 0, err
    assert max(map(len, shown.splitlines())) <= 100 + len(str(out))
    for words in ("on disk", "decode, tokens/s", "accuracy", "loads in transformers with"):
        assert words in shown
    record = load(out / "report.json")
    assert [arm.name for arm in record.arms] == ["dense", "compressed"]
    assert record.arms[1].chain == "gptq:group_size=16"
    assert record.settings["data"] == "tasks:sudoku"
    for arm in record.arms:
        assert arm.cost["peak_bytes"] > arm.metrics["added_bytes"].value >= 0
    assert "gptq" in (out / "report.html").read_text()
    told = json.loads((out / "steps.json").read_text())["steps"]
    assert told[0]["step"] == "gptq:group_size=16"
    assert not (tmp_path / "out.work").exists()
    # The same folder is not written over.
    code, _, err = whet(*base, "--out", out)
    assert code == 2
    assert "exists" in err


def test_a_dry_run_writes_nothing(whet, source, tmp_path):
    arguments = ("compress", source, "--step", "rtn:group_size=16", "--dry-run")
    arguments += ("--out", tmp_path / "out")
    code, shown, _ = whet(*arguments)
    assert code == 0
    assert "nothing was written" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert not list(tmp_path.iterdir())
    _, shown, _ = whet(*arguments, "--json")
    found = json.loads(shown)
    assert [row["step"] for row in found["rows"]][1] == "rtn:group_size=16"
    assert found["rows"][1]["weight_bytes"] < found["rows"][0]["weight_bytes"]


def test_a_recipe_and_flags_over_it(whet, source, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "steps:\n  - gptq: {bits: 8, group_size: 16}\ndata: tasks:sudoku\ncount: 50\n"
    )
    arguments = ("compress", source, "--recipe", recipe, "--out", tmp_path / "out", "--dry-run")
    tokens = [
        json.loads(whet(*arguments, "--json", *flags)[1])["tokens"]
        for flags in ((), ("--count", 5))
    ]
    assert tokens[0] > 5 * tokens[1]


def test_a_run_that_was_killed_while_it_measured_goes_on_there(
    whet, source, tmp_path, monkeypatch, unverified
):
    out = tmp_path / "out"
    arguments = ("compress", source, "--step", "magnitude:sparsity=0.5", "--n", 4, "--out", out)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("whet.cli._compress.compression_record", stop)
        code, _, err = whet(*arguments)
    assert code == 130
    before = (out / "model.safetensors").stat().st_mtime_ns
    code, shown, err = whet(*arguments)
    assert code == 0, err
    assert "quality was not measured" in shown
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert (out / "report.json").is_file()


def test_an_encoder_without_anything_to_measure_on(whet, tmp_path, unverified):
    folder, text = bert(tmp_path / "bert"), tmp_path / "t.txt"
    text.write_text("a few words\nand more of them\n" * 4)
    arguments = ("compress", folder, "--step", "wanda:sparsity=0.5", "--data", text)
    code, shown, err = whet(*arguments, "--no-measure", "--out", tmp_path / "out")
    assert code == 0, err
    assert shown.strip() == str(tmp_path / "out")


def test_wrong_commands_end_in_one_sentence(fails, source, tmp_path):
    out = ("--out", tmp_path / "out")
    step = ("--step", "rtn")
    assert "at least one step" in fails("compress", source, *out)
    assert "unknown method" in fails("compress", source, "--step", "gptk", *out)
    assert "no option" in fails("compress", source, "--step", "gptq:bit=4", *out)
    assert "unknown model" in fails("compress", "tiny-arr", *step, *out)
    assert "needs calibration data" in fails("compress", source, "--step", "gptq", *out)
    assert "no text file" in fails("compress", source, *step, "--data", "nowhere.txt", *out)
    assert "not both" in fails("compress", source, *step, "--recipe", "w4", *out)
    assert "no recipe" in fails("compress", source, "--recipe", "w5", *out)
    assert "count=0" in fails("compress", source, *step, "--count", 0, *out)
    assert "n=0" in fails("compress", source, *step, "--n", 0, *out)
    assert "is no size" in fails("compress", source, *step, "--max-memory", "lots", *out)
    assert "--sts FOLDER" in fails("compress", source, *step, "--eval", "sts15", *out)
    assert "device=" in fails("compress", source, *step, "--device", "abacus", *out)
    text = tmp_path / "t.txt"
    text.write_text("abc")
    sentence = fails("compress", source, *step, "--eval", text, *out)
    assert "has 3 tokens to measure on, a window has 160" in sentence
    assert "comes after" in fails("compress", source, *step, "--step", "svd", *out)
    assert not (tmp_path / "out").exists()


def test_sizes_as_people_write_them():
    assert parse_bytes("2GB") == parse_bytes("2G") == parse_bytes("2 GiB") == 2 * 2**30
    assert parse_bytes("1.5k") == 1536
    assert parse_bytes("123") == 123
    for text in ("", "GB", "-1", "0", "2XB"):
        with pytest.raises(OptionError, match="is no size"):
            parse_bytes(text)
