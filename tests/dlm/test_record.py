import pytest
import torch

from whet.data.trajectories import Trajectories
from whet.dlm.canvas import denoise
from whet.dlm.decoders import decoder_options
from whet.dlm.record import Asked, ask_tasks, record_prompts, record_trajectories
from whet.dlm.texts import generate_texts
from whet.errors import CheckpointError, InputError, OptionError
from whet.tasks import expand, problems
from whet.zoo import load


@pytest.fixture(scope="module")
def tiny():
    return load("tiny-dlm")


def record(tiny, folder, *, decoder="low-confidence", count=14, **more):
    model, tokenizer = tiny
    options = {"gen_length": 16, "batch_size": 4, "shard_size": 6, **more}
    return record_trajectories(
        model,
        tokenizer,
        expand(["scratchpad"]),
        name="tiny-dlm",
        count=count,
        options=decoder_options(decoder),
        folder=folder,
        **options,
    )


def test_a_trajectory_is_what_the_decoder_did(tiny, tmp_path):
    model, tokenizer = tiny
    found = record(tiny, tmp_path)
    texts = generate_texts(
        model,
        tokenizer,
        [t.prompt for t in found],
        options=decoder_options("low-confidence"),
        gen_length=16,
    )
    for trajectory, done in zip(found, texts, strict=True):
        assert (trajectory.tokens, trajectory.text) == (done.tokens, done.text)
        assert trajectory.commit_step == done.trace.commit_step[done.index].tolist()
        assert trajectory.steps == 16


def test_canvases_replay_the_decoding(tiny, tmp_path):
    model, _ = tiny
    found = record(tiny, tmp_path, decoder="threshold:threshold=0.8")
    mask = model.config.mask_token_id
    for trajectory in found[:4]:
        seen = []
        prompt = torch.tensor([trajectory.prompt_ids])
        canvas = torch.cat((prompt, torch.full((1, 16), mask)), 1)
        denoise(
            model,
            canvas,
            options=decoder_options("threshold:threshold=0.8"),
            on_commit=lambda step, rows, seen=seen: seen.append(rows.tokens[0, -16:].tolist()),
        )
        assert [trajectory.canvas(n + 1, mask) for n in range(trajectory.steps)] == seen
        assert trajectory.canvas(0, mask) == [mask] * 16


def test_answers_are_judged_and_wrong_ones_can_be_left_out(tiny, tmp_path):
    found = record(tiny, tmp_path, count=28)
    for trajectory in found:
        [asked] = [
            a
            for a in ask_tasks(expand(["scratchpad"]), 28, seed=0)
            if a.prompt == trajectory.prompt
        ]
        assert trajectory.correct == asked.check(trajectory.text)
    right = Trajectories(tmp_path, right_only=True)
    assert 0 < len(right) < 28  # queens are hard for it
    assert all(t.correct for t in right)
    assert [t.request for t in right] == [t.request for t in found if t.correct]


def test_only_training_problems_are_recorded():
    tasks = expand(["scratchpad"])
    train = {i.prompt for t in tasks for i in problems(t, seed=3, split="train", count=3)}
    asked = ask_tasks(tasks, 3 * len(tasks), seed=3)
    assert {a.prompt for a in asked} == train


def test_shards_and_batches_change_nothing(tiny, tmp_path):
    one = record(tiny, tmp_path / "a")
    two = record(tiny, tmp_path / "b", shard_size=14, batch_size=14)
    assert [(t.tokens, t.commit_step) for t in one] == [(t.tokens, t.commit_step) for t in two]


def test_a_stopped_recording_goes_on(tiny, tmp_path):
    whole = list(record(tiny, tmp_path / "whole"))

    def stop(done):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(tiny, tmp_path / "stopped", on_progress=stop)
    assert len(list((tmp_path / "stopped").glob("*.arrow"))) == 1
    assert list(record(tiny, tmp_path / "stopped")) == whole


def test_other_prompts_or_another_decoder_need_another_folder(tiny, tmp_path):
    record(tiny, tmp_path)
    with pytest.raises(CheckpointError, match=r"identity\.decoder"):
        record(tiny, tmp_path, decoder="threshold")
    with pytest.raises(CheckpointError, match=r"identity\.prompts"):
        record(tiny, tmp_path, seed=1)


def test_prompts_without_a_checker_are_not_judged(tiny, tmp_path):
    model, tokenizer = tiny
    record_prompts(
        model,
        tokenizer,
        [Asked("mine", "sort 4 2 1=")],
        folder=tmp_path,
        identity={},
        options=decoder_options("threshold"),
        gen_length=16,
    )
    [found] = Trajectories(tmp_path, right_only=True)
    assert found.correct is None
    assert found.source == "mine"


def test_decoders_that_rewrite_and_empty_lists_are_refused(tiny, tmp_path):
    with pytest.raises(OptionError, match="rewrites tokens"):
        record(tiny, tmp_path, decoder="llada2.1")
    with pytest.raises(InputError, match="no prompt"):
        record_prompts(
            *tiny,
            [],
            folder=tmp_path,
            identity={},
            options=decoder_options("threshold"),
            gen_length=16,
        )
