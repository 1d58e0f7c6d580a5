import itertools
import subprocess
import sys

import pytest
import torch

import whet.auto  # noqa: F401 - registers the classes
from whet.errors import CheckpointError
from whet.layers.low_rank import make_linear
from whet.layers.sparsify24 import magnitude24
from whet.models.elas_llama import ElasLlamaConfig, ElasLlamaForCausalLM
from whet.zoo.tokenizer import byte_tokenizer

SIZES = {
    "vocab_size": 264,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "rank": 8,
    "eos_token_id": 256,
    "pad_token_id": 256,
}
KINDS = {
    "plain": {},
    "cola": {"factors": "cola"},
    "sltrain": {"factors": "sltrain"},
    "full": {"factors": "full"},
    "swiglu": {"ffn": "swiglu", "sparsify": "none"},
    "soft": {"sparsify": "soft", "gradient": "ste"},
    "mvue": {"sparsify": "mvue", "gradient": "ste"},
}
TOKENS = torch.randint(0, 256, (3, 12), generator=torch.Generator().manual_seed(0))
kinds = pytest.mark.parametrize("kind", KINDS)


def made(seed=0, **options):
    torch.manual_seed(seed)
    return ElasLlamaForCausalLM(ElasLlamaConfig(**SIZES | options)).double()


@pytest.fixture(scope="module", autouse=True)
def quiet():
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.mark.parametrize(
    ("intermediate", "width"), [(1376, 2112), (2048, 3072), (2736, 4160), (5461, 8192)]
)
def test_the_width_is_three_halves_in_multiples_of_64(intermediate, width):
    assert ElasLlamaConfig(**SIZES | {"intermediate_size": intermediate}).ffn_width == width


@kinds
def test_every_parameter_is_initialised_and_learns(kind):
    model = made(**KINDS[kind]).train()
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert parameter.grad is not None, name
        # SLTrain's inner factors wait for their outer ones, which begin at 0.
        assert parameter.grad.any() or (kind == "sltrain" and name.endswith("inner")), name
    again, other = made(**KINDS[kind]), made(seed=1, **KINDS[kind])
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(next(other.parameters()), next(model.parameters()))


def test_factors_begin_at_the_scale_of_cola():
    model = made(factors="cola", hidden_size=128, rank=64)
    up = model.model.layers[0].mlp.up
    assert float(up.inner.std()) == pytest.approx((64 * (128 + 64)) ** -0.25, rel=0.05)
    assert float((up.outer @ up.inner).std()) == pytest.approx((128 + 64) ** -0.5, rel=0.1)


@kinds
def test_a_saved_model_is_the_same_through_the_auto_classes(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    model = made(**KINDS[kind]).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert type(again) is ElasLlamaForCausalLM
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(model(input_ids=TOKENS).logits, again(input_ids=TOKENS).logits)


def test_a_fresh_process_loads_it_and_writes_text(tmp_path):
    made().float().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    code = (
        "import sys, torch, whet; torch.set_num_threads(1); model, tok = whet.load(sys.argv[1]); "
        "ids = tok('abc', return_tensors='pt').input_ids; "
        "print(model.generate(ids, max_new_tokens=5, do_sample=False).shape[1])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert 4 <= int(out.stdout.split()[-1]) <= 8


def test_a_cache_and_a_batch_change_no_token():
    model = made().eval()
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    mask = torch.ones_like(TOKENS)
    one = model.generate(TOKENS, attention_mask=mask, use_cache=True, **options)
    other = model.generate(TOKENS, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(one, other)
    alone = [model.generate(row[None], attention_mask=mask[:1], **options) for row in TOKENS]
    assert torch.equal(one, torch.cat(alone))


def test_the_feed_forward_layer_is_the_papers():
    model = made(factors="plain").eval()
    ffn = model.model.layers[0].mlp
    x = torch.randn(5, 32, dtype=torch.float64)
    y2 = (x @ ffn.up.inner.t() @ ffn.up.outer.t()).relu().square()
    expected = magnitude24(y2) @ ffn.down.inner.t() @ ffn.down.outer.t()
    assert torch.allclose(ffn(x), expected, rtol=1e-12, atol=1e-14)


def test_the_sparse_part_is_at_fixed_places():
    torch.manual_seed(0)
    layer = make_linear("sltrain", 12, 20, rank=4, sparse_share=0.1).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        layer.support.copy_(layer.draw_support())
    assert len(layer.support.unique()) == 24
    dense = torch.zeros(240, dtype=torch.float64)
    dense[layer.support] = layer.values.detach()
    weight = 8 * layer.outer @ layer.inner + dense.view(20, 12)
    x = torch.randn(3, 12, dtype=torch.float64)
    assert torch.allclose(layer(x), x @ weight.t(), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        lambda v: torch.func.functional_call(layer, {"values": v}, (x,)),
        (layer.values.detach().requires_grad_(),),
    )


def test_dense_steps_run_out_in_training_only():
    model = made(dense_steps=2)
    dense = made(sparsify="none")
    sparse = made()

    def logits(m):
        with torch.no_grad():
            return m(input_ids=TOKENS).logits

    assert torch.equal(logits(model), logits(dense))
    assert not torch.equal(logits(dense), logits(sparse))
    model.eval()
    model.advance()
    logits(model)
    assert model.config.dense_steps == 2
    model.train()
    logits(model)  # forwards do not count: a step may have many
    model.advance()
    assert torch.equal(logits(model), logits(dense))
    model.advance()
    model.advance()
    assert model.config.dense_steps == 0
    assert torch.equal(logits(model), logits(sparse))


def test_two_models_count_on_their_own():
    one, other = made(dense_steps=3), made(dense_steps=3)
    one.train().advance()
    assert (one.config.dense_steps, other.config.dense_steps) == (2, 3)
    other.set_counters(one.counters())
    assert torch.equal(one.counters(), other.counters())
    assert other.config.dense_steps == 2
    with pytest.raises(ValueError, match="shorter"):
        one.set_counters(torch.zeros(1, 3, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["soft", "mvue"])
def test_random_and_soft_rules_are_for_training_only(kind):
    model, plain = made(**KINDS[kind]), made()
    with torch.no_grad():
        trained = model.train()(input_ids=TOKENS).logits
        tested = model.eval()(input_ids=TOKENS).logits
        assert torch.equal(tested, plain.eval()(input_ids=TOKENS).logits)
    assert not torch.equal(trained, tested)


def test_draws_are_by_step_so_that_recomputing_changes_nothing():
    model = made(**KINDS["mvue"]).train()
    with torch.no_grad():
        one, again = (model(input_ids=TOKENS).logits for _ in range(2))
        model.advance()
        assert torch.equal(one, again)
        assert not torch.equal(one, model(input_ids=TOKENS).logits)


@pytest.mark.parametrize("kind", ["plain", "mvue", "soft"])
def test_activation_checkpointing_gives_the_same_gradients(kind):
    found = []
    for checkpointing in (False, True):
        model = made(**KINDS[kind]).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss.backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("refresh", "moves"), [(0, [1, 0, 0, 0, 0]), (2, [1, 0, 1, 0, 1])])
def test_the_soft_rules_factor_is_frozen_or_refreshed(refresh, moves):
    model = made(**KINDS["soft"], soft_refresh=refresh).train()
    ffn = model.feed_forwards()[0]
    seen = [float(ffn.soft_scale)]
    with torch.no_grad():
        for _ in range(5):
            ffn.up.outer.mul_(1.1)
            model(input_ids=torch.randint(0, 256, (2, 8)))
            model(input_ids=TOKENS)  # a second forward of the step
            seen.append(float(ffn.soft_scale))
            model.advance()
    assert [int(a != b) for a, b in itertools.pairwise(seen)] == moves
    assert seen[-1] > 1  # it makes up for what was taken away


def test_zeros_and_energy_are_observed_when_asked_for():
    model = made().eval()
    with torch.no_grad():
        model(input_ids=TOKENS)
        assert all(m.observed is None for m in model.feed_forwards())
        model.observe(True)
        model(input_ids=TOKENS)
    for ffn in model.feed_forwards():
        assert 0.3 < ffn.observed.zeros < 0.7  # about a half before training
        assert 0 < ffn.observed.dropped_energy < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factors": "cole"}, "factors='cole' is unknown: did you mean 'cola'"),
        ({"ffn": "gelu"}, "ffn='gelu' is unknown"),
        ({"rank": 0}, "rank=0 must be a whole number of at least 1"),
        ({"dense_steps": -1}, "dense_steps=-1 must be"),
        ({"soft_refresh": 1.5}, r"soft_refresh=1\.5 must be"),
        ({"ffn": "swiglu"}, "sparsify='magnitude' needs ffn='relu2'"),
        ({"sparsify": "soft"}, "sparsify='soft' needs gradient='ste'"),
        ({"sltrain_share": 1.0}, r"sltrain_share=1\.0 must be"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' must be 'silu'"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(options, message):
    with pytest.raises(CheckpointError, match=message):
        ElasLlamaConfig(**SIZES | options)
