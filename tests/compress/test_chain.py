"""Chains: read, planned, run, resumed, streamed."""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file

import whet
from tests.compress.checkpoints import Break, Scale, bert, llama
from whet import catalogue
from whet.compress import run as running
from whet.compress.baselines.width import Channels
from whet.compress.chain import parse_chain, parse_step, read_recipe, recipes, step_text
from whet.compress.plan import Calibrating, plan, work_folder
from whet.compress.run import finished, run
from whet.compress.sizes import size_of
from whet.compress.target import open_target
from whet.errors import CheckpointError, InputError, NonFiniteError, OptionError
from whet.models.edits import save_model

TASKS = Calibrating(source="tasks:sudoku", count=6, length=64, batch_size=4)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def target(checkpoint):
    return open_target(checkpoint)


@pytest.fixture
def ours(monkeypatch):
    """The methods of these tests in the catalogue."""
    known = {"channels": Channels, "scale": Scale}
    row = functools.partial(catalogue.Method, kind="baseline", summary="")
    rows = {n: row(id=n, parts={"compress": f"{c.__module__}:{c.__name__}"})
            for n, c in known.items()}  # fmt: skip
    monkeypatch.setattr(catalogue, "methods", lambda: rows)
    return known


@pytest.fixture
def unverified(monkeypatch):
    """Saving without the fresh process, which other tests pay for."""
    quick = functools.partial(save_model, verify=False)
    monkeypatch.setattr(running, "save_model", lambda *a, **k: quick(*a, **{**k, "verify": False}))


def weights(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def same(one, two):
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_steps_are_read_from_text_and_from_mappings(ours):
    assert parse_step("scale:factor=0.25") == Scale(0.25)
    assert parse_step({"scale": {"factor": 0.25}}) == Scale(0.25)
    assert parse_step({"scale": None}) == parse_step("scale") == Scale()
    assert parse_chain(["channels:keep=0.75", "scale"]) == (Channels(0.75), Scale())


def test_a_step_is_written_with_the_options_that_were_changed(ours):
    assert step_text(Scale()) == "scale"
    assert step_text(Scale(0.25)) == "scale:factor=0.25"
    assert parse_step(step_text(Channels(0.1))) == Channels(0.1)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([], "at least one step"),
        (["scal"], "did you mean 'scale'"),
        (["scale:facto=1"], "no option 'facto': did you mean 'factor'"),
        (["scale:factor=much"], "factor='much' must be a number"),
        ([{"scale": {"factor": "much"}}], "factor='much' must be a number"),
        (["scale@fast"], "no suites"),
        ([{"scale": {}, "channels": {}}], "one method and its options"),
        (["scale", "channels"], "channels .width. comes after scale .transform."),
    ],
)
def test_chains_that_cannot_be_say_why(ours, steps, why):
    with pytest.raises(OptionError, match=why):
        parse_chain(steps)


def test_recipes_are_read_strictly(ours, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("steps:\n  - channels: {keep: 0.75}\n  - scale\ndata: tasks:sudoku\ncount: 9\n")
    read = read_recipe(str(path))
    assert read.chain() == (Channels(0.75), Scale())
    assert (read.data, read.count, read.length, read.seed) == ("tasks:sudoku", 9, None, 0)
    for text, why in (
        ("steps: [scale]\ncont: 3\n", "unknown key 'cont': did you mean 'count'"),
        ("steps: [scal]\n", "did you mean 'scale'"),
        ("steps: []\n", "steps"),
        ("data: x\n", "steps: Field required"),
        ("steps: [", "not YAML"),
        ("steps: [scale, channels]\n", "comes after"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=why):
            read_recipe(str(path))
    with pytest.raises(InputError, match="no recipe 'nothing'"):
        read_recipe("nothing")


def test_the_recipes_of_the_package_can_be_read():
    assert recipes()
    for name in recipes():
        assert read_recipe(name).chain()


def test_a_plan_says_the_sizes_that_the_result_has(target, tmp_path, unverified):
    chain = (Channels(0.5), Scale())
    planned = plan(chain, target, calibrating=TASKS, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    made = run(chain, target, calibrating=TASKS, out=tmp_path / "out")
    result, _ = open_target(tmp_path / "out").load()
    assert size_of(result, length=64) == planned.after
    assert planned.before == size_of(target.load()[0], length=64)
    assert planned.after.parameters < planned.before.parameters
    assert [step.step for step in planned.steps] == ["channels:keep=0.5", "scale"]
    assert planned.tokens == made.steps[1].report["tokens"] > 0
    assert planned.seconds > 0
    assert planned.disk_bytes > planned.after.weight_bytes


def test_a_chain_does_what_its_steps_do_by_hand(target, checkpoint, tmp_path):
    made = run((Channels(0.5), Scale(0.25)), target, calibrating=TASKS, out=tmp_path / "out")
    assert made.model_type == "llama"
    assert made.difference == 0.0
    model, _ = whet.load(checkpoint)
    job = running.Job(model=model, batches=TASKS.batches(target, seed=0))
    Channels(0.5).apply(job)
    Scale(0.25).apply(job)
    expected = dict(model.state_dict())
    found = weights(tmp_path / "out")
    assert found.keys() <= expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not work_folder(tmp_path / "out").exists()
    told = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert [entry["step"] for entry in told["steps"]] == ["channels:keep=0.5", "scale:factor=0.25"]
    chosen = {"out": tmp_path / "out", "calibrating": TASKS}
    assert finished((Channels(0.5), Scale(0.25)), target, **chosen) == made
    assert finished((Channels(0.5), Scale(0.5)), target, **chosen) is None
    assert finished((Channels(0.5), Scale(0.25)), target, seed=1, **chosen) is None


class Killed(Exception):
    pass


@pytest.mark.parametrize("when", [(0, 1.0), (1, 0.0), (1, 0.7), (2, 0.5), (2, 1.0)])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(
    target, tmp_path, unverified, when, reference
):
    out, chain = tmp_path / "out", (Channels(0.5), Scale(0.25), Scale(0.75))

    def stop(number, step, share):
        if (number, share) >= when:
            raise Killed

    with pytest.raises(Killed):
        run(chain, target, calibrating=TASKS, out=out, on_progress=stop)
    assert not out.exists()
    begun = []
    made = run(
        chain, target, calibrating=TASKS, out=out, on_progress=lambda n, s, x: begun.append(n)
    )
    assert min(begun) == when[0]
    assert same(out, reference)
    assert [step.step for step in made.steps] == [step_text(step) for step in chain]


@pytest.fixture(scope="module")
def reference(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "out"
    with pytest.MonkeyPatch.context() as patch:
        quick = save_model
        patch.setattr(running, "save_model", lambda *a, **k: quick(*a, **{**k, "verify": False}))
        chain = (Channels(0.5), Scale(0.25), Scale(0.75))
        run(chain, open_target(checkpoint), calibrating=TASKS, out=out)
    return out


def test_a_work_folder_of_another_chain_is_refused(target, tmp_path, unverified):
    out = tmp_path / "out"

    def stop(number, step, share):
        if number:
            raise Killed

    chain = (Channels(0.5), Scale(0.25))
    with pytest.raises(Killed):
        run(chain, target, calibrating=TASKS, out=out, on_progress=stop)
    with pytest.raises(CheckpointError, match="different: seed"):
        run(chain, target, calibrating=TASKS, out=out, seed=1)
    with pytest.raises(CheckpointError, match="different: chain"):
        run((Channels(0.5), Scale()), target, calibrating=TASKS, out=out)


def test_streamed_and_in_memory_runs_agree(target, checkpoint, tmp_path, unverified):
    chain = (Scale(0.25), Scale(0.75))
    run(chain, target, calibrating=TASKS, out=tmp_path / "whole")
    made = run(chain, target, calibrating=TASKS, out=tmp_path / "streamed", max_memory=10**9)
    assert made.difference is None
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "streamed")
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert not work_folder(tmp_path / "streamed").exists()
    model, tokenizer = whet.load(tmp_path / "streamed")
    assert model.config.model_type == "llama"
    assert tokenizer("sudoku")["input_ids"]


def test_results_are_stored_in_the_type_of_the_original(tmp_path, unverified):
    target = open_target(llama(tmp_path / "half", blocks=1, dtype=torch.float16))
    assert target.dtype == torch.float16
    run((Channels(0.5),), target, calibrating=Calibrating(), out=tmp_path / "out")
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float16}


def test_encoders_are_compressed_and_keep_how_they_are_pooled(tmp_path, unverified):
    folder = bert(tmp_path / "bert")
    (folder / "modules.json").write_text('[{"path": ""}, {"path": "1_Pooling"}, {"path": "../x"}]')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    target = open_target(folder)
    assert target.kind == "encoder"
    text = tmp_path / "t.txt"
    text.write_text("a line\n\nanother line\n" * 5)
    calibrating = Calibrating(source=text, count=4)
    rows = calibrating.batches(target, seed=0)[0]
    assert rows["input_ids"][0, 0] == 2  # [CLS]
    run((Channels(0.5), Scale()), target, calibrating=calibrating, out=tmp_path / "out")
    model, _ = open_target(tmp_path / "out").load()
    assert type(model).__name__ == "BertModel"
    assert model.config.intermediate_size == 24
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == "{}"


def test_nan_is_never_saved(target, tmp_path):
    with pytest.raises(NonFiniteError, match="break left NaN or infinity in"):
        run((Break(),), target, calibrating=Calibrating(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_said_before_any_work(target, checkpoint, tmp_path):
    out, chain = tmp_path / "out", (Scale(),)

    def refused(chain=chain, calibrating=TASKS, out=out, **options):
        for doing in (plan, run):
            with pytest.raises((OptionError, InputError)) as error:
                doing(chain, target, calibrating=calibrating, out=out, **options)
        return str(error.value)

    assert "scale needs calibration data" in refused(calibrating=Calibrating())
    assert "exists: choose another folder" in refused(out=checkpoint)
    assert "channels needs the whole model" in refused((Channels(), Scale()), max_memory=10**9)
    assert "max_memory=0 must be" in refused(max_memory=0)
    long = Calibrating(source="tasks:sudoku", length=161)
    assert "length=161 exceeds the model's context of 160" in refused(calibrating=long)
    assert "channels (width) comes after" in refused((Scale(), Channels()))
    assert not out.exists()


def test_a_full_disk_is_seen_beforehand(target, tmp_path, monkeypatch):
    usage = functools.partial(type, "usage", ())
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage({"free": 1000}))
    with pytest.raises(InputError, match="the disk has room for 1,000 bytes"):
        plan((Scale(),), target, calibrating=TASKS, out=tmp_path / "out")


def test_models_that_cannot_be_compressed_say_why(checkpoint, tmp_path):
    with pytest.raises(OptionError, match="did you mean 'tiny-ar'"):
        open_target("tiny-arr")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_target(tmp_path)
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(OptionError, match=r"quantized already \(gptq\)"):
        open_target(tmp_path)
