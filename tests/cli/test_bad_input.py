"""Every kind of bad input ends in one clear sentence and exit code 2, and loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from whet.zoo import recipes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("genrate",), "generate"),
        (("generate", "--thresold", "1", "x"), "threshold"),
        (("generate", "--model", "tiny-dml", "x"), "did you mean 'tiny-dlm'"),
        (("generate", "--model", "./nowhere", "x"), "not a directory"),
        (("generate", "--decoder", "sora", "x"), "did you mean 'soar'"),
        (("generate", "--decoder", "soar:beam=2", "x"), "did you mean 'beam_width'"),
        (
            ("generate", "--decoder", "threshold", "--beam-width", "2", "x"),
            "no option 'beam_width'",
        ),
        (("generate", "--decoder", "soar", "--threshold", "1.5", "x"), "between 0 and 1"),
        (("generate", "--decoder", "soar", "--threshold", "high", "x"), "threshold"),
        (("generate", "--dtype", "float12", "x"), "did you mean 'float32'"),
        (("generate", "--device", "warp", "x"), "device='warp'"),
        (("generate", "--decoder", "soar@mine", "x"), "decoders have no suites"),
        (("benchmark", "decode", "--tasks", "sudoku", "--n", "1"), "n=1 is too few"),
        (("evaluate", "--tasks", "sudko"), "did you mean 'sudoku'"),
        (("evaluate", "--tasks", "sudoku:blanks=3"), "min_blanks"),
        (("benchmark", "decode", "--decoders", "soar:threshold=2"), "between 0 and 1"),
        (("methods", "saor"), "did you mean 'soar'"),
        (("methods", "--for", "lada"), "did you mean 'llada'"),
        (("reproduce", "saor"), "did you mean 'soar'"),
        (("train", "masked", "--config", "tiny-dml"), "did you mean 'tiny-dlm'"),
        (("train", "soar", "--config", "tiny-dlm"), "unknown method for `train`"),
        (("report", "nowhere"), "nowhere"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_unknown_names_and_values(fails, arguments, says):
    assert says in fails(*arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--steps", "5"), None),
        (("--block-length", "5"), "block_length=5 does not divide the 16 positions"),
        (("--block-length", "4", "--steps", "6"), "steps=6 must be a multiple"),
        (("--gen-length", "0"), "gen_length=0"),
        (("--batch-size", "0"), "batch_size=0"),
        (("--gen-length", "80"), "context of 64"),
        (("--chat",), "no chat template"),
    ],
)
def test_options_that_do_not_fit(whet, fails, checkpoint, arguments, says):
    command = ("generate", "--model", checkpoint, *arguments, "sudoku 1=")
    if says is None:  # five steps over one window are fine: quotas differ by one
        assert whet(*command)[0] == 0
    else:
        assert says in fails(*command)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "empty"),
        ("a<|mask|>b", "mask token"),
        ("1" * 60, "exceed the model's context of 64"),
        ("snow ☃", "'☃'"),
    ],
)
def test_prompts_that_cannot_be_used(fails, checkpoint, prompt, says):
    assert says in fails("generate", "--model", checkpoint, prompt)


def test_token_ids_beyond_the_vocabulary():
    import torch

    from whet.errors import InputError
    from whet.models.denoiser import Denoiser, Traits

    denoiser = Denoiser(
        model=None,
        traits=Traits(),
        mask_token_id=1,
        eos_token_ids=(0,),
        pad_token_id=0,
        vocab_size=10,
        context_length=8,
    )
    with pytest.raises(InputError, match="token id 12: ids go from 0 to 9"):
        denoiser.check_prompt(torch.tensor([3, 12]))


def test_a_damaged_checkpoint_is_named(fails, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in fails("generate", "--model", broken, "sudoku 1=")
    weights.unlink()
    (broken / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert "pickle" in fails("generate", "--model", broken, "sudoku 1=")


def test_broken_jsonl_lines_are_named_and_the_rest_is_done(whet, checkpoint, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(
        '{"prompt": "sudoku 1="}\nnot json\n{"text": 3}\n\n{"prompt": "2", "id": "z"}\n'
    )
    code, _, err = whet("generate", "--model", checkpoint, "--input", source, "--output", output)
    assert code == 2
    assert "line 2 is not JSON" in err
    assert 'line 3 has no text under "prompt"' in err
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == ["0", "z"]


def test_finished_lines_are_skipped_and_half_lines_done_again(whet, checkpoint, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"sudoku {i}="}) + "\n" for i in range(6)))
    command = ("generate", "--model", checkpoint, "--input", source, "--output", output)
    command = (*command, "--batch-size", "2", "--decoder", "soar")
    assert whet(*command)[0] == 0
    whole = output.read_text()
    lines = whole.splitlines(keepends=True)
    output.write_text("".join(lines[:3]) + lines[3][:20])
    assert whet(*command)[0] == 0
    assert output.read_text() == whole


def test_an_output_that_is_something_else_is_refused(fails, checkpoint, tmp_path):
    command = ("generate", "--model", checkpoint, "--output", tmp_path / "notes.txt", "sudoku 1=")
    for text in ("my notes\n", "my notes", "a\nb", '{"prompt": "x"}\n'):
        (tmp_path / "notes.txt").write_text(text)
        assert "is no output of `whet generate`" in fails(*command)
        assert (tmp_path / "notes.txt").read_text() == text


def test_an_id_stands_for_one_prompt(whet, fails, checkpoint, tmp_path):
    output = tmp_path / "out.jsonl"
    command = ("generate", "--model", checkpoint, "--output", output)
    assert whet(*command, "sudoku 1=")[0] == 0
    kept = output.read_text()
    assert "holds another prompt under the id '0'" in fails(*command, "sudoku 2=")
    assert output.read_text() == kept
    twice = tmp_path / "in.jsonl"
    twice.write_text('{"prompt": "1", "id": "a"}\n{"prompt": "2", "id": "a"}\n')
    assert "lines 1 and 2 share the id 'a'" in fails(*command, "--input", twice)


def test_unusual_line_separators_are_text(whet, checkpoint, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "sudoku 1=", "id": "a\u2028b"}\n', encoding="utf-8")
    command = ("generate", "--model", checkpoint, "--input", source, "--output", output)
    assert whet(*command)[0] == 0
    whole = output.read_text()
    assert whet(*command)[0] == 0
    assert output.read_text() == whole


def test_unwritable_and_full_outputs(fails, checkpoint, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    command = ("generate", "--model", checkpoint, "sudoku 1=", "--output")
    assert "cannot write" in fails(*command, blocker / "out.jsonl")
    if os.path.exists("/dev/full"):
        assert "No space left" in fails(*command, "/dev/full")
        many = tmp_path / "many.jsonl"
        many.write_text("".join(f'{{"prompt": "sudoku {i}="}}\n' for i in range(200)))
        many_command = ("generate", "--model", checkpoint, "--input", many, "--gen-length", "4")
        assert "No space left" in fails(
            *many_command, "--batch-size", "200", "--output", "/dev/full"
        )
    train = ("train", "masked", "--config", "tiny-dlm", "--out", blocker / "run")
    assert "file" in fails(*train)
    for verb in (("benchmark", "decode", "--model", checkpoint), ("reproduce", "soar")):
        assert "cannot write" in fails(*verb, "--out", blocker / "records")


def test_a_full_stdout_is_one_sentence(checkpoint):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "whet", "methods", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: output: No space left on device"]


def test_infill_without_a_gap_names_the_line_and_the_rest_is_done(whet, checkpoint):
    command = ("generate", "--model", checkpoint, "--infill", "--json")
    code, out, err = whet(*command, "1<|mask|>", "12", "<|mask|>3")
    assert code == 2
    assert "line 2: the text has no gap" in err
    assert len(out.splitlines()) == 2


def test_interrupt_keeps_finished_lines_and_resumes(whet, checkpoint, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    prompts = [{"prompt": f"sudoku {i}="} for i in range(400)]
    source.write_text("".join(json.dumps(p) + "\n" for p in prompts))
    arguments = ["generate", "--model", str(checkpoint), "--input", str(source)]
    arguments += ["--output", str(output), "--batch-size", "4", "--gen-length", "32"]
    child = subprocess.Popen(
        [sys.executable, "-m", "whet", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (output.is_file() and output.stat().st_size):
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    kept = output.read_text()
    assert 0 < len(kept.splitlines()) < 400
    assert kept.endswith("\n")
    source.write_text("".join(json.dumps(p) + "\n" for p in prompts[: len(kept.splitlines()) + 4]))
    assert whet(*arguments)[0] == 0
    assert output.read_text().startswith(kept)
    assert len(output.read_text().splitlines()) == len(kept.splitlines()) + 4


def test_a_recipe_with_an_unknown_key(fails, tmp_path):
    recipe = yaml.safe_load(recipes()["tiny-dlm"].read_text())
    recipe["fit"]["learning_rat"] = 1
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe))
    out = tmp_path / "run"
    says = fails("train", "masked", "--config", path, "--out", out)
    assert "unknown key 'fit.learning_rat'" in says
    assert "learning_rate" in says
    assert not out.exists()


def test_no_prompt_at_all(fails, checkpoint, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert "no prompt" in fails("generate", "--model", checkpoint)
