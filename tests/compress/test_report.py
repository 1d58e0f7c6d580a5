"""What a compression gained and cost."""

import functools
import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from tests.compress.checkpoints import bert, llama
from tests.models.test_roles_models import NAMES, VOCAB, plain
from whet.compress import run as running
from whet.compress.baselines.width import Channels
from whet.compress.plan import Calibrating
from whet.compress.quality import (
    SimilarityQuality,
    TaskQuality,
    TextQuality,
    guide_of,
    quality_of,
    repetition,
    score,
)
from whet.compress.report import (
    Timing,
    _peak,
    compression_record,
    disk_bytes,
    findings,
    footprint,
    speed_notes,
)
from whet.compress.run import Compressed, StepReport, run
from whet.compress.sizes import count_parameters, flops_per_token, share_of_zeros, stored_bytes
from whet.compress.target import open_target
from whet.errors import InputError, OptionError
from whet.evaluate.autoregressive import AutoregressiveModel
from whet.evaluate.perplexity import perplexity
from whet.layers.packed_linear import PackedLinear
from whet.layers.quantizer import Grid
from whet.measure.record import Comparison
from whet.models.edits import save_model
from whet.models.roles.structure import View, blocks_of
from whet.report.compression import compression_table

QUICK = Timing(rows=1, length=8, new_tokens=2, repeats=2, warmup=0)
TEXT = "".join(f"line {i}, and {i * i} more of it\n" for i in range(30))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return open_target(llama(tmp_path_factory.mktemp("models") / "llama", blocks=1))


@pytest.fixture(scope="module")
def made(target, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:  # the fresh process is for the tests of chains
        patch.setattr(running, "save_model", functools.partial(save_model, verify=False))
        return run((Channels(),), target, calibrating=Calibrating(), out=out)


def record_of(target, made, quality=None, **options):
    options = {"timing": QUICK, "memory": False, **options}
    return compression_record(target, made, (Channels(),), quality=quality, settings={}, **options)


def test_a_record_compares_the_model_with_the_one_it_was_made_from(target, made):
    text = TextQuality(TEXT, "text", 32, prompts=2, new_tokens=6)
    record = record_of(target, made, text)
    before, after = record.arms
    assert (before.name, after.name) == ("dense", "compressed")
    assert after.chain == "channels"
    for name in ("parameters", "disk", "flops_per_token"):
        assert after.metrics[name].value < before.metrics[name].value
    model, tokenizer = target.load()
    scorer = AutoregressiveModel(model, tokenizer, name="x")
    pinned = perplexity(scorer, TEXT, window=32)
    assert before.metrics["perplexity"].value == pytest.approx(pinned.value, rel=1e-6)
    assert before.metrics["perplexity"].n == pinned.windows
    ratio = next(c for c in record.comparisons if c.metric == "perplexity")
    both = [arm.metrics["perplexity"].value for arm in (after, before)]
    assert ratio.value == pytest.approx(both[0] / both[1])
    assert {"prefill_tokens_per_second", "decode_tokens_per_second", "repetition"} <= set(
        after.metrics
    )
    assert record.notes[0].startswith("loads in transformers as it is, without whet")


def test_disk_bytes_count_every_file_but_the_reports(target, made):
    sizes = disk_bytes(made.folder)
    (made.folder / "report.html").write_text("x")
    assert disk_bytes(made.folder) == sizes
    every = {p.name: p.stat().st_size for p in made.folder.iterdir()}
    left_out = sum(every[name] for name in ("steps.json", "report.html"))
    assert sum(sizes.values()) == sum(every.values()) - left_out
    assert sizes["weights"] == every["model.safetensors"]
    assert sizes["metadata"] == every["config.json"] + every["generation_config.json"]


def test_where_nothing_got_faster_a_sentence_says_so(target):
    model, _ = target.load()

    def said(*ends):
        compared = [
            Comparison(a="compressed", b="dense", metric=f"{name}_tokens_per_second", value=low,
                       ci=(low, high), test="ratio")
            for name, (low, high) in zip(("prefill", "decode"), ends, strict=True)
        ]  # fmt: skip
        return speed_notes(compared, model)

    assert said((0.9, 1.1), (0.8, 0.9)) == ["nothing got faster here (prefill 0.90×, decode 0.80×)"]
    assert said((1.1, 1.2), (0.8, 0.9)) == ["got slower (decode 0.80×)"]
    assert said((1.1, 1.2), (0.9, 1.1)) == []
    model.lm_head.weight.data.zero_()
    model.model.embed_tokens.weight.data.zero_()
    (sentence,) = said((0.9, 1.1), (0.8, 0.9))
    assert sentence.endswith(": zeros are multiplied like other numbers")


def test_tables_fit_a_hundred_columns(target, made):
    record = record_of(target, made, TaskQuality("tasks:sudoku", 4))
    out = io.StringIO()
    Console(file=out, width=100).print(compression_table(record))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.lstrip().startswith("FLOPs per token") for line in lines)
    accuracy = next(line for line in lines if line.lstrip().startswith("accuracy"))
    assert "p = " in accuracy


def test_peak_memory_counts_loading_and_reading(target):
    found = footprint(folder=str(target.folder), dtype="float32", rows=1, length=8)
    assert found["peak"] > found["added"] >= 0
    fresh, added = _peak(target, QUICK, torch.float32)
    assert 0 < added.value < fresh < found["peak"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dit"])
def test_matrix_products_are_those_that_torch_counts(name):
    model, length = plain(name), 9
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    ids = torch.randint(3, VOCAB, (1, length), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids)
    view = View.of(model)
    # torch does not count its fused attention on a CPU.
    fused = name != "gemma2"
    attention = sum(4 * length * view.in_width(b.attention.output) for b in blocks_of(view))
    expected = flops_per_token(model, length) - fused * attention
    assert counter.get_total_flops() == length * expected


def test_packed_layers_count_their_numbers_and_store_their_bytes():
    linear = torch.nn.Linear(64, 32)
    packed = PackedLinear.empty(32, 64, Grid(4, granularity="group", group_size=32), bias=True)
    assert count_parameters(packed) == count_parameters(linear) == 32 * 64 + 32
    assert stored_bytes(packed, torch.float16) == 32 * 64 // 2 + 32 * 2 * 4 + 2 * 8 + 32 * 2
    linear.weight.data[:16] = 0
    assert share_of_zeros(linear) == 0.5


def test_repetition_is_the_share_of_runs_that_came_before():
    assert repetition([[1, 2, 3, 4, 5, 6]] * 2).value == 0
    assert repetition([[1] * 8] * 2).value == pytest.approx(1 - 1 / 5)
    assert repetition([[1, 2]] * 2).value == 0
    assert repetition([]).value == 0


def test_findings_are_the_notes_and_what_was_cold_or_dead(made):
    report = {"notes": ["a fell back: x"], "dead": {"a": 2, "b": 1}, "cold_experts": {"c": [1]}}
    told = findings(replace(made, steps=(StepReport("gptq", 1.0, report),)))
    assert told == [
        "gptq: a fell back: x",
        "gptq: 3 dead channels in a and 1 more layers",
        "gptq: experts that saw too few tokens in c",
    ]
    many = {"notes": [f"note {i}" for i in range(40)]}
    told = findings(replace(made, steps=(StepReport("gptq", 1.0, many),)))
    assert len(told) == 13
    assert told[-1] == "and 28 more, in steps.json"
    assert isinstance(made, Compressed)


def test_what_quality_is_measured_on(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(TEXT)
    common = {"window": 16, "held_out": 0.1}
    assert quality_of(None, source="tasks:sudoku", **common) == TaskQuality("tasks:sudoku")
    held = quality_of(None, source=path, **common)
    assert TEXT.endswith(held.text)
    assert 0 < len(held.text) < len(TEXT) / 5
    assert quality_of(str(path), source=None, **common).text == TEXT
    assert quality_of(None, source=None, **common) is None
    assert quality_of("tasks:sort", source=path, **common).source == "tasks:sort"
    with pytest.raises(OptionError, match="give --sts FOLDER"):
        quality_of("sts15", source=None, **common)
    with pytest.raises(InputError, match="has no files"):
        quality_of("sts15", source=None, sts=tmp_path, **common)
    with pytest.raises(InputError, match="cannot read text"):
        quality_of("nothing.txt", source=None, **common)


def test_methods_are_led_by_what_the_result_is_not_measured_on(tmp_path, target):
    guide = guide_of("tasks:sudoku", held_out=0.0, window=64)
    assert guide.split == "validation"
    model, tokenizer = target.load()
    quick = replace(guide, count=3)
    assert score(quick, target, model, tokenizer) == {"accuracy/sudoku": 0.0}
    path = tmp_path / "t.txt"
    path.write_text(TEXT)
    led = guide_of(path, held_out=0.2, window=16)
    measured = quality_of(None, source=path, held_out=0.2, window=16)
    assert led.text + measured.text in TEXT
    assert score(led, target, model, tokenizer) < 0
    assert guide_of(None, held_out=0.0, window=16) is None


def test_encoders_are_measured_on_pairs_and_language_models_are_not(tmp_path, target):
    (tmp_path / "2015.a.tsv").write_text(
        "5.0\tabc\tabc\n0.0\tabc\txyz\n\tno\tscore\n2.5\tab\tabd\n"
    )
    quality = SimilarityQuality(tmp_path)
    assert len(quality.pairs) == 3
    encoder = open_target(bert(tmp_path / "bert"))
    model, tokenizer = encoder.load()
    found = quality.measure(model, tokenizer, encoder)
    assert -1 <= found.metrics["spearman"].value <= 1
    (made,) = quality.compare("a", found, "b", found)
    assert (made.value, made.ci) == (0.0, (0.0, 0.0))
    with pytest.raises(OptionError, match="sts15 is for encoders"):
        quality.check(target)
    for other in (TextQuality(TEXT, "text", 16), TaskQuality("tasks:sudoku")):
        with pytest.raises(OptionError, match="predicts no text"):
            other.check(encoder)
    same = Compressed(encoder.folder, "bert", False, 0.0, ())
    record = record_of(encoder, same, quality)
    assert {c.metric for c in record.comparisons} == {"spearman", "prefill_tokens_per_second"}


def test_too_little_text_says_so(target):
    with pytest.raises(InputError, match="has 3 tokens to measure on, a window has 16"):
        TextQuality("abc", "text", 16).check(target)
