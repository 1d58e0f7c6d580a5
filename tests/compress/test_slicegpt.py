"""SliceGPT's exact properties, on tiny float64 models; and an oracle in the stream's own basis."""

import copy
import itertools
import json
import math

import pytest
import torch
import transformers

from tests.compress.calibration import padded_batches
from tests.compress.inputs import correlated, random
from tests.models.test_roles_models import PRE, make, output, plain, same
from whet.compress.method import Job
from whet.compress.slicegpt import SliceGPT, basis, discarded, orthogonal, principal
from whet.errors import InputError, NonFiniteError, OptionError
from whet.models.edits.rotated import find_rotation, project, stream_sites
from whet.models.roles import axis, blocks, fold_norms

ROTATABLE = [name for name in PRE if name not in ("gemma2", "gemma3")]
SMALL = {"round_interval": 4}


def sliced(model, batches=None, *, seed=0, **options):
    report = SliceGPT(**SMALL | options).apply(
        Job(model=model, batches=batches or padded_batches(), seed=seed)
    )
    json.dumps(report, allow_nan=False)
    return report


# --- bases and widths


def test_principal_directions_lose_the_discarded_eigenvalues():
    x = correlated(200, 12)
    values, vectors = principal(x.t() @ x, damp=0.01)
    assert (values.diff() <= 1e-9).all()
    assert torch.allclose(vectors.t() @ vectors, torch.eye(12).double(), atol=1e-12)
    total = x.square().sum()
    for width in range(13):
        kept = vectors[:, :width]
        error = (x - x @ kept @ kept.t()).square().sum()
        assert torch.allclose(error, values[width:].sum(), atol=1e-9 * total)
        assert torch.allclose(error / total, discarded(values)[width], atol=1e-9)
        other = orthogonal(12, torch.Generator().manual_seed(width))[:, :width]
        assert error <= (x - x @ other @ other.t()).square().sum() + 1e-9


def test_damping_shifts_eigenvalues_only():
    x = correlated(200, 12)
    gram = x.t() @ x
    values, vectors = principal(gram, damp=0.0)
    damped_values, damped_vectors = principal(gram, damp=0.5)
    assert torch.allclose(values, damped_values, atol=1e-8)
    assert torch.allclose((vectors * damped_vectors).sum(0).abs(), torch.ones(12).double())
    with pytest.raises(NonFiniteError, match="Gram matrix of the stream"):
        principal(torch.full((3, 3), torch.nan).double())


def test_random_orthogonal_matrices_are_orthogonal_and_have_no_preferred_sign():
    found = [orthogonal(3, torch.Generator().manual_seed(seed)) for seed in range(400)]
    assert all((q.t() @ q - torch.eye(3)).abs().max() < 1e-12 for q in found)
    assert torch.stack(found).mean(0).abs().max() < 5 / math.sqrt(3 * 400)


def test_a_stream_of_zeros_loses_nothing():
    assert (discarded(torch.zeros(4).double()) == 0).all()


def test_widths_are_rounded_down_to_multiples():
    assert basis.width_of(0.2, 768, 8) == 608
    assert basis.width_of(0.3, 10, 1) == 7
    assert basis.width_of(0.0, 10, 8) == 10
    assert basis.between((0.1, 0.3), 3) == pytest.approx([0.1, 0.2, 0.3])
    assert basis.between((0.1, 0.3), 1) == [0.1]
    with pytest.raises(OptionError, match=r"sparsity=0\.9 leaves none of 16 channels in multiples"):
        basis.width_of(0.9, 16, 8)


def test_widths_by_energy_lose_the_least_in_all():
    shares = [discarded(random(6, seed=s).abs().sort(descending=True).values) for s in range(3)]
    for budget in range(3, 19):
        found = basis.widths_by_share(shares, lambda w: w, sum, budget, 1)
        assert sum(found) == budget
        lost = sum(float(s[w]) for s, w in zip(shares, found, strict=True))
        for other in itertools.product(range(1, 7), repeat=3):
            if sum(other) <= budget:
                assert lost <= sum(float(s[w]) for s, w in zip(shares, other, strict=True)) + 1e-12


def test_widths_by_energy_stay_within_the_budget():
    shares = [discarded(random(10, seed=s).abs().sort(descending=True).values) for s in range(3)]

    def parameters(widths):
        return sum(10 * w for w in widths) + sum(a * b for a, b in itertools.pairwise(widths))

    for budget in (240, 300, 400, 1000):
        found = basis.widths_by_share(shares, lambda w: [*w[:2], 10], parameters, budget, 4)
        assert parameters(found) <= budget
        assert set(found) <= {4, 8, 10}
        assert found[2] == 10
    assert found == [10, 10, 10]
    with pytest.raises(OptionError, match="multiples of 4 have 20 parameters or fewer"):
        basis.widths_by_share(shares, lambda w: w, parameters, 20, 4)


# --- the whole method


@pytest.mark.parametrize("name", ROTATABLE)
@pytest.mark.parametrize("rotation", ["pca", "random"])
def test_rotating_every_site_without_slicing_changes_nothing(name, rotation):
    model = make(name)
    before = output(model, name)
    report = sliced(model, sparsity=0.0, rotation=rotation)
    same(output(model, name), before, name)
    assert set(report["widths"]) == {report["full_dim"]}
    assert max(report["discarded"], default=0.0) < 1e-9


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2", "phi", "mixtral"])
def test_stock_float32_models_come_close_without_slicing(name):
    model = plain(name)
    before = output(model, name)
    sliced(model, sparsity=0.0)
    assert (output(model, name) - before).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.parametrize("name", ["llama", "opt", "phi", "olmoe", "llada-tied"])
def test_both_orientations_are_one_function(name):
    one, two, other = make(name), make(name), make(name)
    sliced(one)
    sliced(two, final_orientation="pca")
    sliced(other, seed=1)
    same(output(one, name), output(two, name), name)
    same(output(one, name), output(other, name), name)
    if name != "opt":  # whose positions are embedded too
        energies = [m.get_input_embeddings().weight.detach().square().sum(0) for m in (one, two)]
        spread, sorted_ = (float(e.amax() / e.mean()) for e in energies)
        assert sorted_ > spread


def low_rank(name, rank):
    """A model whose stream lies in a subspace of that rank."""
    model = make(name)
    fold_norms(model)
    space = orthogonal(16, torch.Generator().manual_seed(9))[:, :rank]
    for site in stream_sites(model):
        for role in site.writers:
            project(model, role, space @ space.t())
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi-plain", "qwen3", "qwen2_moe"])
@pytest.mark.parametrize("head", [False, True])
def test_a_stream_that_lies_in_a_subspace_is_sliced_without_loss(name, head):
    model = low_rank(name, 12)
    before = output(model, name)
    report = sliced(model, slice_head=head)
    assert report["widths"][1] == 12
    same(output(model, name), before, name)
    assert max(report["discarded"]) < 1e-9
    narrow = low_rank(name, 12)
    sliced(narrow, slice_head=head, rotation="random")
    assert (output(narrow, name) - before).abs().max() > 0.01


@torch.no_grad()
def by_projection(model, batches, width):
    """SliceGPT in the stream's own basis: every site's stream is projected, nothing rotated.

    Llama. Gives the last batch's logits and the share that every site loses.
    """
    fold_norms(model)
    masks = [batch["attention_mask"] for batch in batches]
    streams = [model.model.embed_tokens(batch["input_ids"]) for batch in batches]
    lost = []

    def cut(streams, width):
        rows = torch.cat([x[m.bool()] for x, m in zip(streams, masks, strict=True)])
        directions = torch.linalg.svd(rows, full_matrices=False).Vh[:width].t()
        projection = directions @ directions.t()
        lost.append(float((rows - rows @ projection).square().sum() / rows.square().sum()))
        return [x @ projection for x in streams]

    def attend(layer, x, mask):
        positions = torch.arange(x.shape[1])[None]
        allowed = torch.ones(x.shape[1], x.shape[1]).tril().bool() & mask.bool()[:, None, None]
        y, _ = layer.self_attn(
            layer.input_layernorm(x),
            position_embeddings=model.model.rotary_emb(x, positions),
            attention_mask=allowed,
        )
        return y

    streams = cut(streams, width)
    for number, layer in enumerate(model.model.layers):
        last = number + 1 == len(model.model.layers)
        streams = [x + attend(layer, x, m) for x, m in zip(streams, masks, strict=True)]
        streams = cut(streams, width)
        streams = [x + layer.mlp(layer.post_attention_layernorm(x)) for x in streams]
        streams = cut(streams, 16 if last else width)
    logits = model.lm_head(model.model.norm(streams[-1]))
    return logits, masks[-1].bool(), lost


def test_each_site_sees_what_the_sliced_model_before_it_gives():
    batches = padded_batches()
    expected, counted, lost = by_projection(make("llama"), batches, 8)
    model = make("llama")
    report = sliced(model, batches, sparsity=0.5)
    with torch.no_grad():
        found = model(**batches[-1]).logits
    assert (found - expected)[counted].abs().max() < 1e-9
    assert report["discarded"] == pytest.approx(lost, abs=1e-9)
    assert min(lost[:-1]) > 0.01
    assert report["tokens"] == 2 * 9 + 17 + 11
    assert not report["notes"]
    few = sliced(make("llama"), batches[2:])
    assert few["notes"] == ["11 tokens say nothing about most of 16 directions: calibrate on more"]


def test_padding_leaves_no_trace():
    batches = padded_batches()
    other = copy.deepcopy(batches)
    for batch in other:
        batch["input_ids"][batch["attention_mask"] == 0] = 7
    one, two = make("llama"), make("llama")
    sliced(one, batches)
    sliced(two, other)
    assert all(map(torch.equal, one.parameters(), two.parameters()))


def test_the_published_parameter_count_of_opt_125m():
    with torch.device("meta"):
        model = transformers.OPTForCausalLM(transformers.OPTConfig())
    SliceGPT(sparsity=0.2).shape(model)
    assert find_rotation(model).widths == (*[608] * 24, 768)
    assert sum(parameter.numel() for parameter in model.parameters()) == 147_250_880


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "mixtral", "qwen2_moe-dense"])
@pytest.mark.parametrize(
    "options", [{}, {"slice_head": True}, {"rotation": "random"}, {"sparsity": 0.5}]
)
def test_shapes_told_beforehand_are_those_of_the_result(name, options):
    model = make(name)
    empty = copy.deepcopy(model).to("meta")
    method = SliceGPT(**SMALL | options)
    method.check(empty)
    method.shape(empty)
    report = sliced(model, **options)
    shapes = {key: tensor.shape for key, tensor in empty.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in model.state_dict().items()}
    assert report["parameters"]["after"] == sum(p.numel() for p in empty.parameters())
    assert list(find_rotation(model).widths) == report["widths"]


def test_linear_schedules_slice_attention_and_mlp_apart():
    model = make("llama")
    options = {"schedule": "linear", "attention_sparsity": (0.0, 0.5), "mlp_sparsity": (0.25, 0.5)}
    assert sliced(model, **options)["widths"] == [16, 12, 8, 8, 16]
    options.pop("mlp_sparsity")
    assert sliced(make("llama"), **options, slice_head=True)["widths"] == [16, 16, 8, 8, 8]
    assert sliced(make("phi"), **options)["widths"] == [32, 16, 32]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi", "mixtral"])
def test_widths_by_energy_cost_no_more_parameters(name):
    even, chosen = make(name), make(name)
    first = sliced(even)
    second = sliced(chosen, schedule="eigen", round_interval=1)
    assert second["parameters"]["after"] <= first["parameters"]["after"]
    assert second["widths"][-1] == second["full_dim"]
    free = [w for w in second["widths"][:-1] if w < second["full_dim"]]
    assert len(set(free)) > 1 or name == "mixtral"


def test_equal_energy_is_lost_at_every_site_that_may_be_chosen():
    model = low_rank("llama", 12)
    report = sliced(model, schedule="eigen", sparsity=0.25, round_interval=1)
    assert report["widths"] == [12, 12, 12, 12, 16]
    assert max(report["discarded"]) < 1e-9


class Stop(Exception):
    pass


@pytest.mark.parametrize("schedule", ["constant", "eigen"])
@pytest.mark.parametrize("name", ["llama", "phi", "mixtral"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(name, schedule, tmp_path):
    whole = make(name)
    method = SliceGPT(sparsity=0.25, schedule=schedule, round_interval=4)
    batches = padded_batches()
    expected = method.apply(Job(model=whole, batches=batches, folder=tmp_path / "whole"))

    calls = []

    def stop(progress):
        calls.append(progress)
        if progress.block == 1 and progress.phase == "edit" and schedule == "constant":
            raise Stop
        if len(calls) > 12 and progress.block == 1 and progress.phase == "observe":
            raise Stop

    folder = tmp_path / "stopped"
    with pytest.raises(Stop):
        method.apply(Job(model=make(name), batches=batches, folder=folder, on_progress=stop))
    model = make(name)
    found = method.apply(Job(model=model, batches=batches, folder=folder))
    assert found == expected
    assert all(map(torch.equal, model.parameters(), whole.parameters()))
    assert torch.equal(output(model, name), output(whole, name))
    again = make(name)  # and once more, when nothing is left to do
    assert method.apply(Job(model=again, batches=batches, folder=folder)) == expected
    assert torch.equal(output(again, name), output(whole, name))


def test_a_sliced_model_can_be_calibrated_again():
    """Its blocks are called as stock ones are, so that what comes next in a chain streams on."""
    from whet.compress.calibrate import calibrate

    model = make("llama")
    sliced(model)
    seen = {}
    calibrate(model, padded_batches(), lambda run: seen.update(run.statistics))
    layer = "model.layers.1"
    assert seen[f"{layer}.attention_skip"].width == 12
    assert seen[f"{layer}.mlp_skip"].width == 12
    assert len(blocks(model)) == 2


def test_what_cannot_be_sliced_is_refused_before_anything_changes():
    for options, words in (
        ({"sparsity": 1.0}, "sparsity=1 must be at least 0 and below 1"),
        ({"sparsity": math.nan}, "sparsity=nan"),
        ({"round_interval": 0}, "round_interval=0"),
        ({"damp": -1.0}, "damp=-1"),
        ({"schedule": "linear"}, "needs attention_sparsity=START.END"),
        ({"attention_sparsity": (0.1, 0.2)}, "is for schedule=linear: this is constant"),
        ({"schedule": "linear", "attention_sparsity": (0.1,)}, "must be two shares"),
        ({"schedule": "linear", "attention_sparsity": (0.1, 1.5)}, "attention_sparsity=1.5"),
        ({"schedule": "eigen", "rotation": "random"}, "schedule=eigen needs rotation=pca"),
    ):
        with pytest.raises(OptionError, match=words):
            SliceGPT(**options)
    for name, words in (("bert", "needs pre-norm"), ("gemma3", "needs pre-norm")):
        model = make(name)
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(OptionError, match=words):
            sliced(model)
        assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())
    with pytest.raises(OptionError, match="leaves none of 16 channels in multiples of 32"):
        SliceGPT(round_interval=32).check(make("llama"))
    with pytest.raises(InputError, match="no batches were given"):
        SliceGPT(round_interval=4).apply(Job(model=make("llama"), batches=[]))


def test_numbers_that_are_not_finite_are_named():
    model = make("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[5:] = torch.nan
    with pytest.raises(NonFiniteError, match="the embedding gives NaN or infinity in batch 0"):
        sliced(model)
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0] = torch.inf
    with pytest.raises(NonFiniteError, match="block 1"):
        sliced(model)


def test_a_sliced_model_learns_again():
    from whet.fit.lora import LoraSettings, add_lora, lora_targets

    model = make("llama")
    sliced(model, sparsity=0.5)
    targets = lora_targets(model, "all-linear")
    assert "model.layers.0.attention_skip" in targets
    ids = padded_batches()[0]["input_ids"]
    wrapped = add_lora(model, LoraSettings(rank=4, alpha=8, dropout=0.05)).train()
    optimizer = torch.optim.Adam([p for p in wrapped.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(20):
        loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# --- checkpoints


@pytest.fixture(scope="module", autouse=True)
def registered():
    from whet.models.registry import register

    register()


@pytest.mark.parametrize("name", ["llama-tied", "qwen3", "opt", "gpt2", "phi", "mixtral", "llada"])
def test_a_sliced_model_comes_back_to_the_bit(name, tmp_path):
    from whet.models.edits import edits_of, save_model

    model = plain(name)
    sliced(model, schedule="eigen")
    before = output(model, name)
    saved = save_model(model, None, tmp_path / "saved", verify=False)
    assert saved.model_type == f"whet_{model.config.model_type}"
    again = transformers.AutoModelForCausalLM.from_pretrained(saved.folder).eval()
    assert torch.equal(output(again, name), before)
    assert edits_of(again) == list(saved.edits)
    twice = save_model(again, None, tmp_path / "twice", verify=False)
    third = transformers.AutoModelForCausalLM.from_pretrained(twice.folder).eval()
    assert torch.equal(output(third, name), before)


def test_a_fresh_process_reads_a_model_that_was_cut_elsewhere_too(tmp_path):
    from whet.models.edits import save_model
    from whet.models.roles import keep

    model = plain("qwen3")
    sliced(model)
    keep(model, axis(model, "ffn", 1), range(8))
    saved = save_model(model, None, tmp_path / "saved")
    assert saved.difference == 0
    assert {edit.kind for edit in saved.edits} == {"rotate_skip", "resize"}
