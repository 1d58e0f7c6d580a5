"""The verbs do what they say."""

import io
import json
import subprocess
import sys

import pytest

from whet import catalogue
from whet.measure.record import load

VERBS = ["generate", "compress", "train", "evaluate", "benchmark", "reproduce", "methods", "report"]
VERBS += ["doctor"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example(whet, verb):
    code, out, _ = whet(verb, "--help")
    assert code == 0
    assert f"whet {verb}" in out
    assert "Example:" in out


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["methods", "--json"]])
def test_light_verbs_leave_torch_alone(arguments):
    script = (
        "import sys; from whet.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.stderr.write(repr(sorted(heavy)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "[]"
    assert done.returncode == 0


def test_methods_lists_the_catalogue(whet):
    _, out, _ = whet("methods", "--json")
    assert {row["id"] for row in json.loads(out)} == set(catalogue.methods())
    _, out, _ = whet("methods", "--for", "dream")
    assert "soar" in out
    assert max(map(len, out.splitlines())) <= 100


def test_doctor(whet):
    code, out, _ = whet("doctor", "--json")
    rows = {row["what"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["torch"]["ok"]
    assert "tiny-dlm" in rows["zoo"]["found"]


def test_generate_from_arguments_stdin_and_jsonl_agree(whet, checkpoint, tmp_path, monkeypatch):
    prompts = ["sudoku 1=", "sudoku 22="]
    base = ("generate", "--model", checkpoint, "--decoder", "soar:threshold=0.3")
    _, from_arguments, _ = whet(*base, *prompts)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(prompts) + "\n"))
    _, from_stdin, _ = whet(*base)
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    _, from_jsonl, _ = whet(*base, "--input", source)
    assert from_arguments == from_stdin == from_jsonl
    # A setting as a flag is the setting in the name.
    flags = ("generate", "--model", checkpoint, "--decoder", "soar", "--threshold", "0.3")
    assert whet(*flags, *prompts)[1] == from_arguments


def test_generate_json_and_trace(whet, checkpoint, tmp_path):
    trace = tmp_path / "trace.json"
    code, out, _ = whet(
        "generate",
        "--model",
        checkpoint,
        "--json",
        "--trace",
        trace,
        "--decoder",
        "pbs",
        "sudoku 1=",
    )
    assert code == 0
    line = json.loads(out)
    assert line["prompt"] == "sudoku 1="
    assert line["steps"] == 16
    [detail] = json.loads(trace.read_text())
    assert len(detail["steps"]) == 16
    assert sorted(p for s in detail["steps"] for p in s["positions"]) == list(range(16))
    assert sum(s["rows"] for s in detail["steps"]) == line["rows"] == detail["rows"]
    assert all(0 <= c <= 1 for s in detail["steps"] for c in s["confidences"])


def test_generate_live_view_draws_the_canvas(whet, checkpoint):
    _, out, err = whet(
        "generate", "--model", checkpoint, "--live", "--delay", "0", "--json", "sudoku 1="
    )
    assert "16 steps" in err
    assert json.loads(out)["steps"] == 16


def test_a_redirected_stdout_stays_redirected_under_a_live_terminal(checkpoint, tmp_path):
    """With a terminal on stderr, bars and live views must not swallow what stdout is for."""
    import os
    import pty

    if not hasattr(pty, "openpty"):
        pytest.skip("this system has no pseudo-terminals")
    for extra in (["--live", "--delay", "0"], ["--no-live"]):
        leader, follower = pty.openpty()
        command = [sys.executable, "-m", "whet", "generate", "--model", str(checkpoint), *extra]
        with open(tmp_path / "out.txt", "w") as out:
            child = subprocess.Popen([*command, "--json", "sudoku 1="], stdout=out, stderr=follower)
        os.close(follower)
        seen = b""
        try:
            while chunk := os.read(leader, 65536):
                seen += chunk
        except OSError:  # the other end is closed
            pass
        assert child.wait() == 0, seen
        os.close(leader)
        assert json.loads((tmp_path / "out.txt").read_text())["steps"] == 16


def test_infill_keeps_what_is_given(whet, checkpoint):
    text = "sudoku 1<|mask|>3<|mask|>=ab"
    code, out, _ = whet("generate", "--model", checkpoint, "--infill", "--json", text)
    filled = json.loads(out)["text"]
    assert code == 0
    assert "<|mask|>" not in filled
    assert filled.startswith("sudoku 1")
    assert filled.endswith("=ab")


def test_evaluate_counts_every_problem(whet, checkpoint, tmp_path):
    code, out, _ = whet(
        "evaluate",
        "--model",
        checkpoint,
        "--tasks",
        "sudoku",
        "sort",
        "--n",
        "10",
        "--json",
        "--out",
        tmp_path,
    )
    assert code == 0
    [arm] = load(tmp_path / "evaluate.json").arms
    assert {"accuracy", "accuracy/sudoku", "accuracy/sort", "strict_accuracy"} <= set(arm.metrics)
    record = json.loads(out)
    assert record["arms"][0]["metrics"]["accuracy/sudoku"]["n"] == 5
    assert record["arms"][0]["metrics"]["accuracy"]["n"] == 10
    assert (tmp_path / "evaluate.html").is_file()
    [log] = tmp_path.glob("answers-*.jsonl")
    assert len(log.read_text().splitlines()) == 11


def test_benchmark_writes_record_items_and_page(whet, checkpoint, tmp_path):
    out_folder = tmp_path / "records"
    code, out, _ = whet(
        "benchmark",
        "decode",
        "--model",
        checkpoint,
        "--tasks",
        "sudoku",
        "queens",
        "--decoders",
        "greedy",
        "threshold:threshold=0.3",
        "soar:threshold=0.3",
        "--n",
        "12",
        "--batch-size",
        "4",
        "--out",
        out_folder,
        "--watch",
        "1",
    )
    assert code == 0
    record = load(out_folder / "decode.json")
    greedy, threshold, _soar = record.arms
    assert greedy.metrics["accuracy"].n == 12
    assert threshold.metrics["forwards"].value <= greedy.metrics["forwards"].value
    metrics = {(c.a, c.metric) for c in record.comparisons}
    assert ("soar:threshold=0.3", "rows") in metrics
    assert "decode.html" in out
    page = (out_folder / "decode.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    code, shown, _ = whet("report", out_folder, "--page", tmp_path / "all.html")
    assert code == 0
    assert "greedy" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert (tmp_path / "all.html").stat().st_size > 10_000


def test_generate_keeps_the_batch_full_of_lines_with_their_own_lengths(whet, checkpoint, tmp_path):
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lengths = [9, 2, 5, 3, 7, 1]
    lines = [{"prompt": "sudoku 1=", "gen_length": n, "id": f"p{n}"} for n in lengths]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base = ("generate", "--model", checkpoint, "--input", source, "--batch-size", 2)
    assert whet(*base, "--output", sink)[0] == 0
    found = [json.loads(line) for line in sink.read_text().splitlines()]
    # One token per step: the steps are the lengths, and short texts do not wait for long ones.
    assert {f["id"]: f["steps"] for f in found} == {f"p{n}": n for n in lengths}
    assert [f["id"] for f in found][:2] == ["p2", "p5"]
    # On the screen they keep the order of the file.
    shown = [json.loads(line)["id"] for line in whet(*base, "--json")[1].splitlines()]
    assert shown == [line["id"] for line in lines]
    source.write_text('{"prompt": "sudoku 1=", "gen_length": 0}\n{"prompt": "sudoku 2="}\n')
    code, out, err = whet(*base, "--json")
    assert code == 2
    assert "line 1: gen_length=0 must be a whole number above 0" in err
    assert len(out.splitlines()) == 1


def test_infill_of_several_texts_in_one_batch_keeps_what_is_given(whet, checkpoint):
    texts = ["sudoku 1<|mask|>=3<|mask|>", "1<|mask|>", "sudoku 22=<|mask|>4<|mask|><|mask|>1"]
    base = ("generate", "--model", checkpoint, "--infill")
    together = whet(*base, *texts)[1].splitlines()
    assert [whet(*base, text)[1].strip("\n") for text in texts] == together


def test_benchmark_sweep_marks_the_pareto_set_and_says_what_it_left_out(whet, checkpoint, tmp_path):
    code, out, err = whet(
        *("benchmark", "decode", "--model", checkpoint, "--tasks", "sudoku", "--n", "6"),
        *("--decoders", "greedy", "threshold", "--sweep", "threshold=0.2,0.4"),
        *("cache=none,block", "--out", tmp_path, "--gen-length", "8"),
    )
    assert code == 0
    assert "★" in out
    assert "left out" in err
    assert "block-causal" in err
    record = load(tmp_path / "decode.json")
    names = [arm.name for arm in record.arms]
    assert names == [
        "greedy",
        "threshold",
        *(f"threshold:threshold={t},cache=none" for t in (0.2, 0.4)),
    ]
    for arm in record.arms:
        seconds, rate = arm.metrics["seconds"], arm.metrics["tokens_per_second"]
        assert seconds.value > 0
        assert rate.value <= 8.001 / seconds.value  # at most the region, never the prompt
        assert 0 < arm.metrics["arness"].value <= 1
    page = (tmp_path / "decode.html").read_text()
    assert page.count("<svg") >= 3


def test_generate_continues_texts_with_an_autoregressive_model(whet, tmp_path):
    prompts = ["sort 3120456789=", "queens .5...8..3=", "sort 9876543210="]
    code, out, _ = whet("generate", "--model", "tiny-ar", *prompts)
    assert code == 0
    texts = out.splitlines()
    assert len(texts) == 3
    assert all(text.startswith("<think>") and "</think>" in text for text in texts)
    assert texts[0].endswith("</think>0123456789")
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    arguments = ("--input", source, "--output", output, "--batch-size", "2")
    assert whet("generate", "--model", "tiny-ar", *arguments)[0] == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert {v["prompt"]: v["text"] for v in lines} == dict(zip(prompts, texts, strict=True))
    sampled = [
        whet("generate", "--model", "tiny-ar", "--temperature", "1", "--seed", s, prompts[1])[1]
        for s in ("1", "1", "2", "3", "4")
    ]
    assert sampled[0] == sampled[1]
    assert len(set(sampled)) > 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--decoder", "soar"), "--decoder: tiny-ar is autoregressive"),
        (("--block-length", "4"), "--block-length: tiny-ar is autoregressive"),
        (("--infill",), "--infill needs a canvas"),
        (("--gen-length", "900"), "the model's context is 256"),
    ],
)
def test_generate_refuses_what_an_autoregressive_model_has_not(whet, flags, says):
    code, _, err = whet("generate", "--model", "tiny-ar", *flags, "sort 3120456789=")
    assert code == 2
    assert says in err
