"""NAP's fine-tuning: what a batch holds, what the loss is, and that a run goes on where it was."""

import pytest
import torch
import yaml

from whet.dlm.nap.data import PathSets, SolverPaths, build_path_sets
from whet.dlm.nap.layout import tag_ids
from whet.dlm.nap.training import NapRecipe, NapTraining, path_tokenizer
from whet.errors import InputError, OptionError
from whet.tasks import get_task
from whet.zoo import load

TASK = get_task("modsum:count=3,modulus=10,leaps=0.4")
MODEL = {
    "model_type": "llada",
    "d_model": 16,
    "n_heads": 2,
    "n_layers": 1,
    "mlp_hidden_size": 16,
    "vocab_size": 120,
    "max_sequence_length": 96,
}
DATA = {"path_length": 12, "summary_length": 2, "batch_size": 6, "separator": ";"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty path sets of three paths each."""
    out = tmp_path_factory.mktemp("paths")
    build_path_sets(out, [TASK], SolverPaths([TASK], seed=0), count=20)
    return out


def recipe(folder, data=None, fit=None, **settings):
    return NapRecipe.model_validate(
        {
            "method": "nap",
            "model": MODEL,
            "data": {"folder": folder, **DATA, **(data or {})},
            "fit": {"steps": 4, "learning_rate": 0.01, "warmup": 1, "ema": 0.9, **(fit or {})},
            **settings,
        }
    )


def texts(training, batch):
    return [
        training.tokenizer.decode(row[real].tolist())
        for row, real in zip(batch.tokens, batch.real, strict=True)
    ]


PACKED = {"path_length": None, "summary_length": None, "random_length": False}
END = "<|endoftext|>"


def test_a_batch_in_slots_is_the_sets_with_their_tags(folder):
    training = NapTraining(recipe(folder))
    known = {s.prompt: s for s in PathSets(folder)}
    assert len(training.fitting) == 20
    for text in texts(training, training.batch(0)):
        prompt, _, rest = text.partition("=<")
        one = known[prompt + "="]
        expected = "".join(
            f"<think {k}>{p}{END * (12 - len(p))}</think {k}>" for k, p in enumerate(one.paths, 1)
        )
        assert "<" + rest == f"{expected}<summary>{one.summary}{END}</summary>"


def test_packed_texts_are_filled_to_the_longest_or_cut_to_one_of_them(folder):
    full = NapTraining(recipe(folder, PACKED))
    known = {s.prompt: s for s in PathSets(folder)}
    lengths = set()
    for text in texts(full, full.batch(0)):
        prompt, _, rest = text.partition("=<")
        one = known[prompt + "="]
        expected = "".join(f"<think {k}>{p}</think {k}>" for k, p in enumerate(one.paths, 1))
        body = rest.rstrip("|").replace(END, "")
        assert "<" + body == f"{expected}<summary>{one.summary}</summary>"
        lengths.add(sum(map(len, one.paths)))
    assert len(lengths) > 1
    cut = NapTraining(recipe(folder, {**PACKED, "random_length": True}))
    widths = {cut.batch(k).tokens.shape[1] for k in range(8)}
    assert len(widths) > 1
    widest = max(full.batch(k).tokens.shape[1] for k in range(8))
    assert max(widths) <= widest


def test_a_chain_is_the_same_paths_as_one_text(folder):
    training = NapTraining(recipe(folder, {"form": "chain", "chain_length": 48}))
    known = {s.prompt: s for s in PathSets(folder)}
    batch = training.batch(0)
    assert int((batch.real.sum(-1) - batch.real.sum(-1).min()).max()) == 0
    for text in texts(training, batch):
        prompt, _, rest = text.partition("=<")
        one = known[prompt + "="]
        body = f"<think>{';'.join(one.paths)}</think>{one.summary}"
        assert ("<" + rest).startswith(body + END)
        assert ("<" + rest).replace(END, "") == body


def test_sets_that_do_not_fit_are_left_out_and_counted(folder):
    training = NapTraining(recipe(folder, {"path_length": 10}))
    known = list(PathSets(folder))
    assert training.fitting == [i for i, s in enumerate(known) if max(map(len, s.paths)) <= 10]
    assert 0 < training.left_out == 20 - len(training.fitting) < 20


def test_forms_start_from_the_same_weights_and_see_the_same_sets(folder):
    a = NapTraining(recipe(folder))
    b = NapTraining(recipe(folder, {"form": "chain", "chain_length": 48}))
    for (name, x), (_, y) in zip(
        a.model.state_dict().items(), b.model.state_dict().items(), strict=True
    ):
        assert torch.equal(x, y), name
    heads = [[t.partition("=<")[0] for t in texts(m, m.batch(3))] for m in (a, b)]
    assert heads[0] == heads[1]


@pytest.mark.parametrize("shuffle", [False, True])
def test_masks_lie_in_the_response_and_weights_on_masks(folder, shuffle):
    training = NapTraining(recipe(folder, shuffle_think=shuffle))
    equals = training.tokenizer.convert_tokens_to_ids("=")
    seen = set()
    for step in range(6):
        batch = training.batch(step)
        prompt = (batch.tokens == equals).int().argmax(-1)
        column = torch.arange(batch.tokens.shape[1])
        assert not (batch.mask & (column <= prompt[:, None])).any()
        assert not (batch.mask & ~batch.real).any()
        assert (batch.weights[~batch.mask] == 0).all()
        assert (batch.weights[batch.mask] > 0).all()
        seen |= {t.index("<think 1>") > t.index("<think 2>") for t in texts(training, batch)}
    assert seen == ({False, True} if shuffle else {False})


def test_structured_masks_leave_tags_alone(folder):
    training = NapTraining(recipe(folder, structured={"r_max": 1.0}))
    tags = torch.tensor(tag_ids(training.tokenizer, 3))
    for step in range(4):
        batch = training.batch(step)
        assert not (batch.mask & torch.isin(batch.tokens, tags)).any()


def test_batches_depend_on_the_seed_and_the_step_alone(folder):
    a, b = (NapTraining(recipe(folder)) for _ in range(2))
    b.batch(0)
    for name in ("tokens", "real", "mask", "weights"):
        assert torch.equal(getattr(a.batch(9), name), getattr(b.batch(9), name))
    other = NapTraining(recipe(folder, fit={"seed": 1}))
    assert not torch.equal(a.batch(9).mask, other.batch(9).mask)


def test_an_epoch_shows_every_set_once(folder):
    training = NapTraining(recipe(folder, {"batch_size": 5}))
    shown = [t.partition("=<")[0] for k in range(4) for t in texts(training, training.batch(k))]
    assert len(set(shown)) == len(shown) == 20
    again = [t.partition("=<")[0] for k in range(4, 8) for t in texts(training, training.batch(k))]
    assert sorted(again) == sorted(shown)
    assert again != shown


@pytest.mark.parametrize("weight", ["original", "linear", "cart", "none"])
@pytest.mark.parametrize("focal", [None, {"alpha": 0.5, "gamma": 1.0}])
def test_the_loss_is_the_weighted_cross_entropy_by_hand(folder, weight, focal):
    training = NapTraining(recipe(folder, time_weight=weight, focal=focal))
    training.model.double()
    batch = training.batch(2)
    loss, values = training.loss(batch, "model")
    noisy = batch.tokens.masked_fill(batch.mask, training.tokenizer.mask_token_id)
    position = (batch.real.long().cumsum(-1) - 1).clamp_min(0)
    logits = training.model(noisy, attention_mask=batch.real, position_ids=position).logits
    logits[..., training.tokenizer.mask_token_id] = -torch.inf
    logits[..., len(training.tokenizer) :] = -torch.inf
    nats = -logits.log_softmax(-1).gather(-1, batch.tokens[..., None])[..., 0]
    terms = nats * batch.weights
    if focal:
        terms = terms * 0.5 * (1 - (-nats).exp())
    total = batch.mask.sum()
    assert float(loss.detach()) == pytest.approx(float((terms[batch.mask].sum() / total).detach()))
    assert values["nats"] == pytest.approx(float(nats[batch.mask].mean().detach()))


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
def test_parts_add_up_to_the_whole(folder, parts):
    training = NapTraining(recipe(folder))
    training.model.double()
    batch = training.batch(1)
    whole, _ = training.loss(batch, "model")
    pieces = training.split(batch, "model", parts)
    assert len(pieces) == parts
    summed = sum(float(training.loss(p, "model")[0].detach()) * share for p, share in pieces)
    assert summed == pytest.approx(float(whole.detach()))
    assert sum(share for _, share in pieces) == pytest.approx(1)


def test_a_batch_without_masks_has_a_loss_of_zero(folder):
    training = NapTraining(recipe(folder))
    batch = training.batch(0)
    object.__setattr__(batch, "mask", torch.zeros_like(batch.mask))
    loss, values = training.loss(batch, "model")
    loss.backward()
    assert float(loss.detach()) == values["nats"] == 0


def test_a_resumed_run_ends_as_one_that_was_not_stopped(folder, tmp_path):
    fit = {"checkpoint_every": 1}
    whole = NapTraining(recipe(folder, fit=fit))
    whole.run(tmp_path / "whole")
    half = NapTraining(recipe(folder, fit=fit))
    calls = []

    def stop(step):
        calls.append(step)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return NapTraining.batch(half, step)

    half.batch = stop
    with pytest.raises(RuntimeError, match="power cut"):
        half.run(tmp_path / "half")
    NapTraining(recipe(folder, fit=fit)).run(tmp_path / "half")
    a, b = ((tmp_path / x / "model" / "model.safetensors").read_bytes() for x in ("whole", "half"))
    assert a == b
    _, tokenizer = load(tmp_path / "whole" / "model")
    assert len(tag_ids(tokenizer, 3)) == 8


def test_a_checkpoint_gets_the_tags_it_lacks(folder, tmp_path):
    first = NapTraining(recipe(folder))
    plain = path_tokenizer(["modsum"], 1)
    first.model.config.mask_token_id = plain.mask_token_id
    first.model.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    tuned = NapTraining(recipe(folder, model=None, init=str(tmp_path)))
    assert len(tuned.tokenizer) == len(plain) + 4
    assert tuned.model.config.vocab_size == MODEL["vocab_size"]  # it had rows to spare
    assert float(tuned.loss(tuned.batch(0), "model")[0].detach()) > 0


@pytest.mark.parametrize(
    ("data", "settings", "error", "says"),
    [
        ({}, {"model": None}, OptionError, "give either init .* or model"),
        ({}, {"init": "tiny-dlm"}, OptionError, "give either init .* or model"),
        ({"summary_length": None}, {}, OptionError, "give both"),
        ({"path_length": 2}, {}, InputError, "none of the 20 path sets fits"),
        ({"form": "chain", "chain_length": 4}, {}, InputError, "none of the 20 path sets fits"),
        ({"paths": 4}, {}, InputError, "has 3 paths a problem, data.paths=4"),
        ({"least_right": 4}, {}, InputError, "none of 20 problems has 4 right paths"),
        ({"form": "chain"}, {"shuffle_think": True}, OptionError, "need data.form=paths"),
        ({}, {"method": "masked"}, OptionError, "is for method 'masked', not 'nap'"),
        ({}, {"model": {**MODEL, "n_layer": 1}}, OptionError, "did you mean 'n_layers'"),
    ],
)
def test_recipes_that_cannot_be_trained_say_why(folder, data, settings, error, says):
    with pytest.raises(error, match=says):
        NapTraining(recipe(folder, data, **settings))


def test_other_rows_are_not_path_sets(tmp_path):
    with pytest.raises(InputError, match="holds no rows"):
        NapTraining(recipe(tmp_path))


def test_recipes_are_read_strictly(folder, tmp_path):
    raw = {
        "method": "nap",
        "init": "tiny-dlm",
        "data": {"folder": str(folder), "path_lenght": 9},
        "fit": {"steps": 1, "learning_rate": 0.1},
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(InputError, match=r"unknown key 'data.path_lenght': .*'path_length'"):
        NapRecipe.read(path)
    raw["data"] = {"folder": str(folder)}
    path.write_text(yaml.safe_dump(raw))
    read = NapRecipe.read(path, method="nap")
    assert (read.time_weight, read.cart_p, read.data.path_length) == ("cart", 0.1, 330)
    assert (read.structured, read.focal, read.shuffle_think) == (None, None, False)
