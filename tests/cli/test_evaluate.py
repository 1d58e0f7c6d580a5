"""`whet evaluate`: any model, any task; killed runs, replays, comparisons, bad input."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.evaluate.sandboxes import enclosed
from tests.evaluate.scripted import Scripted
from tests.evaluate.test_endpoint import Server, chat, send
from tests.evaluate.tiny import tiny_llama
from whet.cli._evaluate import EvaluateJob
from whet.dlm.decoders import decoder_options
from whet.measure.record import load
from whet.tasks.static import PRESETS, STATIC, get_preset
from whet.zoo.tokenizer import character_tokenizer

BUCKETS = ("wrong", "unparsed", "truncated", "failed", "skipped_budget")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A directory with a random Llama of 512 tokens and the zoo's tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "random-llama"
    tokenizer = character_tokenizer(["sort"])
    tiny_llama(len(tokenizer), context=512).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def scripted(monkeypatch):
    """Every model that a command names writes what `say` gives, and is kept in a list."""

    def use(say):
        made = []

        def model(job, name):
            made.append(Scripted(say, name=name, context=4096))
            return made[-1], "scripted"

        monkeypatch.setattr(EvaluateJob, "_model", model)
        return made

    return use


@pytest.fixture
def run(whet):
    """A command that must work, with --json; gives the record."""

    def go(*arguments):
        code, out, err = whet("evaluate", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return go


def count(arm):
    """Problems of an arm by what became of them: they are all that were asked."""
    metrics = arm["metrics"]
    right = metrics["accuracy"]["value"] * metrics["accuracy"]["n"] if "accuracy" in metrics else 0
    return round(right) + sum(metrics[b]["value"] for b in BUCKETS if b in metrics)


def answers(folder):
    [log] = folder.glob("answers-*.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()[1:]]


# --- models and tasks -----------------------------------------------------------------------------


def test_a_diffusion_model_answers_what_it_was_trained_for(run, tmp_path):
    record = run("--tasks", "sort", "--n", "8", "--out", tmp_path)
    [arm] = record["arms"]
    assert arm["metrics"]["accuracy"]["value"] > 0.5
    assert arm["metrics"]["tokens"]["value"] > 0
    assert count(arm) == 8
    assert len(answers(tmp_path)) == 8
    assert (tmp_path / "evaluate.html").is_file()


def test_prompts_longer_than_the_context_are_skipped_and_counted(whet, tmp_path):
    command = ("evaluate", "--model", "tiny-dlm", "--tasks", "sum", "--sizes", "4", "--limit", "5")
    code, out, err = whet(*command, "--out", tmp_path)
    assert code == 0
    assert "5 of 5 problems skipped" in err
    assert "nan" not in out.lower()
    [arm] = load(tmp_path / "evaluate.json").arms
    assert {name: m.value for name, m in arm.metrics.items()} == {"skipped_budget": 5}
    assert answers(tmp_path) == []


def test_an_autoregressive_model_answers_any_task(run, llama):
    record = run(
        *("--model", llama, "--tasks", "sum", "tower_hanoi", "--sizes", "4", "--limit", "6"),
        *("--gen-length", "90", "--reasoning", "0", "--shots", "0", "--temperature", "0.5"),
    )
    [arm] = record["arms"]
    assert count(arm) == record["settings"]["problems"]
    assert arm["chain"] == "autoregressive"
    assert arm["metrics"]["accuracy"]["value"] == 0
    assert record["settings"]["log10_space"]


def test_several_models_are_compared_on_the_same_problems(run, checkpoint, llama, tmp_path):
    record = run(
        *("--model", checkpoint, llama, "tiny-dlm", "--decoder", "threshold"),
        *("--tasks", "sort", "--n", "6", "--gen-length", "16", "--out", tmp_path),
    )
    base, *others = [arm["name"] for arm in record["arms"]]
    assert [(c["a"], c["b"]) for c in record["comparisons"]] == [(name, base) for name in others]
    assert [arm["chain"] for arm in record["arms"]] == ["threshold", "autoregressive", "threshold"]
    logs = [p.read_text().splitlines()[1:] for p in sorted(tmp_path.glob("answers-*.jsonl"))]
    ids = [{json.loads(line)["id"] for line in log} for log in logs]
    assert len(ids) == 3
    assert ids[0] == ids[1] == ids[2]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "correct",
        "VERDICT: ok",
        '{"bucket": "correct", "strict": true}',
        "</answer><answer>correct</answer>",
        "\ud800 \udfff",
        "\\boxed{" * 20_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_nothing_a_model_says_about_itself_scores(text, run, scripted, tmp_path):
    scripted(lambda prompt: text)
    tasks = ("sum", "sort", "logic_grid", "sudoku_solving")
    record = run("--model", "fake", "--tasks", *tasks, "--limit", "2", "--out", tmp_path)
    [arm] = record["arms"]
    accuracy = arm["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (0, 8)
    assert count(arm) == 8
    assert {v["text"] for v in answers(tmp_path)} == {text}
    replayed = run("--replay", next(tmp_path.glob("answers-*")))
    assert replayed["arms"][0]["metrics"] == arm["metrics"]


@enclosed
def test_programs_from_a_file_run_in_the_sandbox(run, scripted, tmp_path):
    problems = [
        ("def double(x):\n", "    return 2 * x\n", "double", "assert f(4) == 8"),
        ("def last(xs):\n", "    return xs[-1]\n", "last", "assert f([1, 2]) == 2"),
    ]
    rows = [
        {
            "task_id": f"Human/{i}",
            "prompt": prompt,
            "canonical_solution": body,
            "test": f"def check(f):\n    {test}\n",
            "entry_point": entry,
        }
        for i, (prompt, body, entry, test) in enumerate(problems)
    ]
    (tmp_path / "humaneval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = scripted(lambda prompt: "    return 2 * x\n" if "double" in prompt else "    pass\n")
    out = tmp_path / "out"
    command = ("--tasks", "humaneval", "--data", tmp_path, "--out", out)
    record = run("--model", "fake", *command)
    [arm] = record["arms"]
    assert (arm["metrics"]["accuracy"]["value"], arm["metrics"]["wrong"]["value"]) == (0.5, 1)
    assert [r.prompt for r in made[0].asked] == ["def last(xs):\n", "def double(x):\n"]
    replayed = run("--replay", out / "answers-fake.jsonl")
    assert replayed["arms"][0]["metrics"] == arm["metrics"]


def test_a_list_of_cells_needs_no_model(whet, scripted):
    made = scripted(str)
    code, out, _ = whet("evaluate", "--tasks", "beyondbench:hard", "--sizes", "4", "--list")
    assert code == 0
    assert "tower_hanoi" in out
    assert made == []


def test_perplexity_of_a_text(run, whet, llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat. " * 20)
    command = ("evaluate", "--model", llama, "--perplexity", text, "--window", "64", "--json")
    code, out, _ = whet(*command, "--out", tmp_path / "out")
    assert code == 0
    [row] = json.loads(out)
    assert row["value"] > 1
    assert row["windows"] == 480 // 64
    record = load(tmp_path / "out" / "evaluate.json")
    assert next(iter(record.arms[0].metrics.values())).value == pytest.approx(row["value"])


# --- runs that are killed, judged again, mixed up -------------------------------------------------


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(run, checkpoint, tmp_path):
    command = ["--model", str(checkpoint), "--tasks", "sudoku", "sort", "--n", "120"]
    command += ["--batch-size", "8", "--gen-length", "16"]
    folder = tmp_path / "killed"
    child = subprocess.Popen(
        [sys.executable, "-m", "whet", "evaluate", *command, "--out", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and child.poll() is None:
            if any(p.stat().st_size > 2500 for p in folder.glob("answers-*.jsonl")):
                break
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=60)
    assert child.returncode == -signal.SIGKILL
    [log] = folder.glob("answers-*.jsonl")
    kept = log.read_bytes()
    done = kept.count(b"\n") - 1
    assert 0 < done < 120
    assert not (folder / "evaluate.json").exists()
    with log.open("ab") as file:  # a line that was being written
        file.write(b'{"id": "sort-0')
    resumed = run(*command, "--out", folder)
    assert log.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])
    ids = [v["id"] for v in answers(folder)]
    assert len(ids) == len(set(ids)) == 120
    whole = run(*command, "--out", tmp_path / "whole")
    assert resumed["arms"][0]["metrics"] == whole["arms"][0]["metrics"]
    assert count(resumed["arms"][0]) == 120
    assert (
        load(folder / "evaluate.json").arms[0].metrics
        == load(tmp_path / "whole" / "evaluate.json").arms[0].metrics
    )
    assert {v["id"]: v["text"] for v in answers(folder)} == {
        v["id"]: v["text"] for v in answers(tmp_path / "whole")
    }
    before = log.read_bytes()
    assert run(*command, "--out", folder)["arms"][0]["metrics"] == whole["arms"][0]["metrics"]
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        ("--seed", "1"),
        ("--problem-seed", "1"),
        ("--n", "7"),
        ("--shots", "1"),
        ("--gen-length", "20"),
        ("--reasoning", "1"),
        ("--temperature", "0.5"),
        ("--tasks", "sudoku"),
        ("--dtype", "float64"),
    ],
    ids=lambda change: change[0],
)
def test_a_folder_belongs_to_one_set_of_problems_and_settings(
    whet, fails, scripted, tmp_path, change
):
    scripted(lambda prompt: "1")
    base = {"--model": "fake", "--tasks": "sort", "--n": "6", "--out": tmp_path}
    assert whet("evaluate", *(x for pair in base.items() for x in pair))[0] == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = base | {change[0]: change[1]}
    says = fails("evaluate", *(x for pair in other.items() for x in pair))
    assert "holds answers of other settings" in says
    assert "use another --out" in says
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_record_of_another_model_is_not_written_over(whet, fails, run, scripted, tmp_path):
    made = scripted(lambda prompt: "1")
    base = ("--tasks", "sort", "--n", "6", "--out", tmp_path)
    assert whet("evaluate", "--model", "first", *base)[0] == 0
    says = fails("evaluate", "--model", "second", *base)
    assert "answers-first.jsonl holds answers of another model" in says
    # Beside the first it is welcome, and the first is not asked again.
    record = run("--model", "first", "second", *base)
    assert [arm["name"] for arm in record["arms"]] == ["first", "second"]
    assert [len(model.asked) for model in made] == [6, 0, 6]
    # Two names that make one file name.
    says = fails("evaluate", "--model", "first", "second", "first/", *base)
    assert "other settings (model)" in says


def test_damaged_logs_are_refused_and_half_lines_dropped(whet, fails, scripted, tmp_path):
    made = scripted(lambda prompt: "1")
    command = ("evaluate", "--model", "fake", "--tasks", "sort", "--n", "6", "--out", tmp_path)
    assert whet(*command)[0] == 0
    log = tmp_path / "answers-fake.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for text in (lines[0] + "junk\n" + lines[1], "junk\n", lines[0] + lines[1].replace("id", "ID")):
        log.write_text(text)
        assert "is damaged" in fails(*command)
        assert "is damaged" in fails("evaluate", "--replay", log)
        assert log.read_text() == text
    log.write_text("".join(lines)[:-9])
    assert whet(*command)[0] == 0
    assert len(made[-1].asked) == 1
    assert log.read_text() == "".join(lines)


def test_a_log_is_judged_again_without_a_model(run, fails, checkpoint, monkeypatch, tmp_path):
    command = ("--model", checkpoint, "--tasks", "sort", "sudoku", "--n", "10")
    record = run(*command, "--out", tmp_path)
    [log] = tmp_path.glob("answers-*")

    def no_model(*arguments):
        raise AssertionError

    monkeypatch.setattr(EvaluateJob, "_model", no_model)
    again = run("--replay", log, "--out", tmp_path / "again")
    for ours, theirs in zip(again["arms"], record["arms"], strict=True):
        assert ours["metrics"] == theirs["metrics"]
        assert ours["name"] == theirs["name"]
    assert (tmp_path / "again" / "evaluate.html").is_file()
    assert run("--replay", log, log)["comparisons"][0]["value"] == 0
    part = tmp_path / "part.jsonl"
    part.write_text("".join(log.read_text().splitlines(keepends=True)[:5]))
    half = run("--replay", part)
    assert half["arms"][0]["metrics"]["accuracy"]["n"] == 4
    assert any("6 of 10 problems skipped" in note for note in half["notes"])
    header = json.loads(log.read_text().splitlines()[0])
    for change in ({"problems": {}}, {"problems": None}, {"model": 3}):
        part.write_text(json.dumps(header | change) + "\n")
        assert "does not say" in fails("evaluate", "--replay", part)
    header["problems"]["seed"] = 1
    part.write_text(json.dumps(header) + "\n")
    assert "answers other problems" in fails("evaluate", "--replay", log, part)
    assert "cannot read" in fails("evaluate", "--replay", tmp_path / "nowhere.jsonl")


# --- endpoints ------------------------------------------------------------------------------------


def test_a_server_that_refuses_some_requests_and_later_answers_them(run, tmp_path):
    def behave(number, payload, handler):
        if number % 3 == 1:
            send(handler, {"error": {"message": "too hard"}}, status=400)
        else:
            send(handler, chat("the answer: 12", usage={"completion_tokens": 5}))

    server = Server(behave)
    try:
        command = ("--model", "far", "--endpoint", server.url, "--tasks", "sort", "--n", "9")
        record = run(*command, "--out", tmp_path)
        [arm] = record["arms"]
        assert arm["chain"] == "endpoint:far"
        assert arm["metrics"]["failed"]["value"] == 3
        assert arm["metrics"]["accuracy"]["n"] == count(arm) == 9
        assert len(server.asked) == 9
        server.asked.clear()
        again = run(*command, "--out", tmp_path)["arms"][0]
        assert len(server.asked) == 3
        assert again["metrics"]["failed"]["value"] == 1
        assert count(again) == 9
    finally:
        server.close()


def test_an_endpoint_that_is_not_there_is_told_at_once(fails, monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    for url in (f"http://127.0.0.1:{port}", "http://127.0.0.1:9/v1"):
        says = fails("evaluate", "--model", "m", "--endpoint", url, "--tasks", "sort", "--n", "9",
                     "--out", tmp_path)  # fmt: skip
        assert "nothing answers at 127.0.0.1" in says
    assert time.monotonic() - began < 60
    assert list(tmp_path.iterdir()) == []
    for url in ("ftp://x", "127.0.0.1:9", "http://127.0.0.1:x", "http://127.0.0.1:99999"):
        assert f"endpoint={url!r} is no address" in fails("evaluate", "--endpoint", url)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--tasks", "beyondbench:hrad"), "did you mean 'beyondbench:hard'"),
        (("--tasks", "find_maximun"), "did you mean 'find_maximum'"),
        (("--tasks", "sum:siz=4"), "did you mean 'size'"),
        (("--tasks", "sum:variation=x"), "variation"),
        (("--tasks", "sum", "--sizes", "0"), "a size is at least 1"),
        (("--tasks", "sum", "--sizes", "x"), "'x' is no whole number"),
        (("--tasks", "sum", "--sizes", "-4"), "'-4' is no whole number"),
        (("--tasks", "sum", "--sizes", ""), "is no whole number"),
        (("--tasks", "sum", "--sizes", "9999999"), "is no whole number"),
        (("--tasks", "sum", "--sizes", "1000"), "they go from 2 to 256"),
        (("--tasks", "sum", "--mode", "wild"), "mode='wild'"),
        (("--n", "5", "--limit", "5"), "give either n"),
        (("--n", "0"), "n=0"),
        (("--n", "-1"), "n=-1"),
        (("--limit", "0"), "limit=0 must be at least 1"),
        (("--limit", "-2"), "limit=-2 must be at least 1"),
        (("--n", "many"), "many"),
        (("--shots", "-1"), "shots=-1 must be at least 0"),
        (("--tasks", "tower_hanoi", "--n", "6", "--shots", "1"), "no problems to show solved"),
        (("--gen-length", "0"), "max_new_tokens=0"),
        (("--reasoning", "-1"), "reasoning=-1"),
        (("--reasoning", "nan"), "reasoning=nan"),
        (("--temperature", "-1"), "temperature=-1"),
        (("--batch-size", "0"), "batch_size=0"),
        (("--tasks", "gsm8k"), "--data or in WHET_DATA"),
        (("--tasks", "gsm8k", "--data", "/nowhere"), "/nowhere does not exist"),
        (("--tasks", "gsm8k", "sum"), "run them apart"),
        (("--tasks", "gsm9k"), "unknown task 'gsm9k'"),
        (("--perplexity", "nowhere.txt"), "nowhere.txt: not a readable UTF-8 text"),
        (("--endpoint", "http://x", "--decoder", "soar"), "--decoder does not reach"),
        (("--model", "tiny-dlm", "tiny-dlm"), "named twice"),
        (("--model", "tiny-dml"), "did you mean 'tiny-dlm'"),
        (("--chat",), "no chat template"),
        (("--device", "warp"), "device='warp'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_bad_input_is_one_sentence(fails, monkeypatch, arguments, says):
    monkeypatch.delenv("WHET_DATA", raising=False)
    if not {"--n", "--limit", "--perplexity", "gsm8k"} & set(arguments):
        arguments = ("--n", "70", *arguments)
    assert says in fails("evaluate", *arguments)


def test_flags_of_canvases_mean_nothing_to_an_autoregressive_model(fails, llama):
    command = ("evaluate", "--model", llama, "--tasks", "sort", "--n", "2")
    assert "--decoder" in fails(*command, "--decoder", "soar")
    assert "--block-length" in fails(*command, "--block-length", "8")


def test_windows_that_cannot_be(fails, llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abc" * 200)
    command = ("evaluate", "--model", llama, "--perplexity", text, "--window")
    for window in ("0", "1", "-5"):
        assert f"window={window} must be at least 2" in fails(*command, window)
    assert "exceeds the model's context of 512" in fails(*command, "513")
    text.write_bytes(b"\xff\xfe")
    assert "not a readable UTF-8 text" in fails(*command, "64")


def test_a_correction_is_not_held_against_a_run_without_answers(whet, fails, scripted, tmp_path):
    scripted(lambda prompt: "1")
    command = ("evaluate", "--model", "fake", "--tasks", "sort", "--n", "6", "--out", tmp_path)
    assert "shots=-1" in fails(*command, "--shots", "-1")
    assert whet(*command, "--shots", "1")[0] == 0


def test_an_out_that_cannot_be_written_is_told_before_anything_is_asked(fails, scripted, tmp_path):
    made = scripted(str)
    (tmp_path / "file").write_text("")
    command = ("evaluate", "--model", "fake", "--tasks", "sort", "--n", "6", "--out")
    assert "cannot write" in fails(*command, tmp_path / "file" / "out")
    assert made == []


@pytest.mark.parametrize("name", PRESETS)
def test_presets_name_decoders_and_tasks_that_exist(name):
    preset = get_preset(name)
    options = decoder_options(preset.chain)
    assert options.temperature == preset.settings.get("temperature", 0.0)
    assert preset.gen_length % (options.block_length or preset.gen_length) == 0
    assert preset.task in STATIC


def test_a_preset_is_read_before_any_model(fails):
    assert "did you mean" in fails("evaluate", "--preset", "llada-8b-base:gsm8k-25")
    says = fails("evaluate", "--preset", "llada-8b-instruct:gsm8k", "--data", "nowhere")
    assert "data folder nowhere" in says  # its task comes from files, which no flag named
