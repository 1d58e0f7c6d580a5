import itertools
import math

import pytest
import torch

from tests.compress.calibration import batches_of as dit_batches
from tests.compress.calibration import ids, padded_batches
from tests.models.test_edits_drop import bypassed, deep, wide
from tests.models.test_roles_models import output, same
from whet.compress.layer_pruning import (
    LayerPruning,
    ShortGPT,
    angular_distances,
    angular_window,
    cosines,
    greedy,
    losses_without,
    most_redundant,
    next_token_loss,
    observe,
    reverse,
    simple,
)
from whet.compress.layer_pruning.criteria import at_random
from whet.compress.method import Job
from whet.errors import CheckpointError, InputError, OptionError
from whet.models.roles import blocks

# Families whose blocks differ in form, flow or masks.
SOME = ["llama", "gemma2", "phi", "opt", "gpt2", "qwen2_moe-dense"]


def model_of(name="llama", count=6, **changes):
    return wide(deep(name, count, **changes))


def batches_of(name="llama"):
    batches = padded_batches()
    # Its softmax in float32 makes NaN of float64 rows that see nothing, as left padding does.
    return batches[::2] if name == "gemma2" else batches


def idle(model, *indices):
    """Blocks that write nothing."""
    for index in indices:
        layer = model.model.layers[index]
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            for parameter in linear.parameters():
                parameter.data.zero_()
    return model


def job(model, **more):
    return Job(model=model, batches=more.pop("batches", batches_of()), **more)


def own_words(model):
    """What the model says itself, so that it is worse at it with any working block gone."""
    model.generation_config.eos_token_id = None
    start, options = ids(4, 2, 1), {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    said = model.generate(start, attention_mask=torch.ones_like(start), **options)
    return [{"input_ids": said}]


# --- what is measured


@torch.no_grad()
def by_hand(model, batches):
    """Per block: (mean of prompts' means, mean over tokens) of the cosine; last tokens' states."""
    per_prompt, per_token, last = [], [], []
    for batch in batches:
        states = []
        hooks = [
            model.get_submodule(b.name).register_forward_hook(
                lambda m, args, kwargs, out, states=states: states.append(
                    (kwargs.get("hidden_states", args[0] if args else None), out)
                ),
                with_kwargs=True,
            )
            for b in blocks(model)
        ]
        model(**batch)
        for hook in hooks:
            hook.remove()
        for row, mask in enumerate(batch["attention_mask"].bool()):
            cosine = [
                torch.cosine_similarity(x[row, mask], y[row, mask], dim=-1) for x, y in states
            ]
            per_prompt.append(torch.stack([c.mean() for c in cosine]))
            per_token.append(torch.stack(cosine))
            stream = [*(x for x, _ in states), states[-1][1]]
            last.append(torch.stack([h[row, mask][-1] for h in stream]))
    return torch.stack(per_prompt).mean(0), torch.cat(per_token, 1).mean(1), torch.stack(last, 1)


@pytest.mark.parametrize("name", SOME)
def test_one_pass_gives_what_hooks_on_the_whole_model_see(name):
    model, batches = model_of(name, 4), batches_of(name)
    seen = observe(model, batches)
    prompt, token, last = by_hand(model, batches)
    assert torch.allclose(torch.tensor(cosines(seen)).double(), prompt, atol=1e-6)
    assert torch.allclose(torch.tensor(cosines(seen, "token")).double(), token, atol=1e-6)
    assert torch.allclose(seen.last, last, atol=1e-5)
    angles = torch.cosine_similarity(last[0], last[2], dim=-1).arccos().mean() / math.pi
    assert angular_distances(seen.last, 2)[0] == pytest.approx(float(angles), abs=1e-6)
    assert len(angular_distances(seen.last, 2)) == 3


def test_the_last_blocks_output_is_taken_before_the_final_norm():
    model = model_of()
    before = cosines(observe(model, batches_of()))
    model.model.norm.weight.data.normal_()
    assert cosines(observe(model, batches_of())) == before


def test_means_over_prompts_and_over_tokens_differ_where_lengths_do():
    seen = observe(model_of(), batches_of())
    assert cosines(seen) != cosines(seen, "token")
    even = observe(model_of(), batches_of()[:1])
    assert cosines(even) == pytest.approx(cosines(even, "token"))


def test_padding_and_the_order_of_batches_do_not_matter():
    model = model_of()
    one = [
        {"input_ids": b["input_ids"][row, mask][None]}
        for b in batches_of()
        for row, mask in enumerate(b["attention_mask"].bool())
    ]
    seen, alone = observe(model, batches_of()), observe(model, one[::-1])
    assert cosines(seen) == pytest.approx(cosines(alone), abs=1e-6)
    assert angular_distances(seen.last, 3) == pytest.approx(
        angular_distances(alone.last, 3), abs=1e-6
    )


def test_first_tokens_can_be_left_out():
    model = model_of()
    batch = {"input_ids": ids(2, 5, 3)}
    whole, rest = observe(model, [batch]), observe(model, [batch], skip_first=True)
    assert rest.counts.tolist() == [4, 4]
    first = whole.sums - rest.sums
    assert (first.abs() <= 1 + 1e-9).all()
    assert torch.equal(whole.last, rest.last)
    with pytest.raises(InputError, match="no token counts"):
        cosines(observe(model, [{"input_ids": ids(2, 1, 3)}], skip_first=True))


def test_rows_of_nothing_but_padding_are_no_prompts():
    model, batch = model_of(), batches_of()[2]
    empty = {
        "input_ids": torch.cat([batch["input_ids"], batch["input_ids"][:1]]),
        "attention_mask": torch.cat([batch["attention_mask"], torch.zeros(1, 7).long()]),
    }
    one, two = observe(model, [batch]), observe(model, [empty])
    assert two.counts.tolist() == one.counts.tolist()
    assert torch.allclose(one.last, two.last, atol=1e-6)


# --- which blocks go


@pytest.mark.parametrize("criterion", ["cosine", "angular", "perplexity", "iterative"])
@pytest.mark.parametrize("block", [2, 4])
def test_a_block_that_writes_nothing_goes_first_and_is_free(criterion, block):
    model = idle(model_of(), block)
    expected = output(model, "llama")
    batches = own_words(model)

    def evaluate(candidate):
        return math.exp(-float(next_token_loss(candidate, batches[0])[0]))

    work = job(model, batches=batches, evaluate=evaluate)
    report = LayerPruning(criterion=criterion, n=1).apply(work)
    assert report["dropped"] == [block]
    same(output(model, "llama"), expected, "llama")
    if criterion == "cosine":
        assert report["cosines"][block] == pytest.approx(1, abs=1e-12)
    if criterion == "angular":
        assert report["distances"][block] == pytest.approx(0, abs=1e-7)
    if criterion == "iterative":
        assert report["rates"][0][str(block)] == pytest.approx(1)


def test_losses_without_idle_blocks_are_the_whole_models():
    model = idle(model_of(), 1, 4)
    losses = losses_without(model, batches_of(), (), range(6))
    total = [next_token_loss(model, batch) for batch in batches_of()]
    whole = float(sum(t for t, _ in total)) / sum(n for _, n in total)
    assert losses[1] == losses[4] == pytest.approx(whole, abs=1e-12)
    assert min(losses[i] for i in (0, 2, 3, 5)) != pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize("name", SOME)
def test_losses_without_a_block_are_those_of_the_pruned_model(name):
    changes = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4}
    model = model_of(name, 4, **(changes if name == "gemma2" else {}))
    batches = batches_of(name)
    for gone, free in (((), [0, 1, 2, 3]), ((1,), [0, 2, 3]), ((3, 0), [1, 2])):
        losses = losses_without(model, batches, gone, free)
        assert list(losses) == free
        for index in free:
            other = bypassed(
                model_of(name, 4, **(changes if name == "gemma2" else {})), (*gone, index)
            )
            found = [next_token_loss(other, batch) for batch in batches]
            expected = float(sum(t for t, _ in found)) / sum(n for _, n in found)
            assert losses[index] == pytest.approx(expected, rel=1e-6)


def test_angular_finds_the_blocks_between_which_nothing_happens():
    seen = observe(idle(model_of(count=8), 3, 4, 5), batches_of())
    distances = angular_distances(seen.last, 3)
    assert len(distances) == 6
    assert angular_window(distances, 3, {0}) == [3, 4, 5]
    assert distances[3] == pytest.approx(0, abs=1e-7)


def test_reverse_and_simple_take_the_deepest_blocks():
    assert reverse(32, 8) == list(range(24, 32))
    assert simple(32, 8) == list(range(23, 31))
    assert reverse(4, 0) == simple(4, 0) == []
    assert reverse(4, 3, {0}) == [1, 2, 3]
    with pytest.raises(OptionError, match="the last block stays, so that 2 others are left"):
        simple(4, 3, {0})


def test_a_constant_evaluator_takes_the_deepest_block_every_time_and_never_the_first():
    report = LayerPruning(criterion="iterative", n=5).apply(job(model_of(), evaluate=lambda m: 0.5))
    assert report["order"] == [5, 4, 3, 2, 1]
    assert report["kept"] == [0]
    assert greedy(4, 3, {0}, lambda gone, free: dict.fromkeys(free, 1.0))[0] == [3, 2, 1]
    assert most_redundant([1.0, 1.0, 1.0, 1.0], 2) == [2, 3]
    assert angular_window([0.5, 0.5, 0.5], 2) == [2, 3]


def test_the_iterative_search_rates_by_the_full_model():
    model = model_of(count=4)
    asked = []

    def evaluate(candidate):
        left = len(blocks(candidate))
        asked.append(left)
        # Tasks of other sizes: the first would decide alone if scores were not relative.
        return {"large": 100.0 if left == 4 else 10.0 * left, "small": 0.1, "never": 0.0}

    report = LayerPruning(criterion="iterative", n=2).apply(job(model, evaluate=evaluate))
    assert asked == [4, 3, 3, 3, 2, 2]
    assert report["whole"] == {"large": 100.0, "small": 0.1, "never": 0.0}
    assert report["rates"][0] == {str(i): pytest.approx((0.3 + 1 + 0) / 3) for i in (1, 2, 3)}
    assert report["rates"][1] == {str(i): pytest.approx((0.2 + 1 + 0) / 3) for i in (1, 2)}
    assert report["order"] == [3, 2]


@pytest.mark.parametrize("criterion", ["perplexity", "iterative"])
def test_a_search_that_was_stopped_goes_on(criterion, tmp_path):
    def loss(m):
        return math.exp(-float(next_token_loss(m, batches_of()[0])[0]) / 100)

    options = LayerPruning(criterion=criterion, n=3)
    whole = options.apply(job(model_of(), evaluate=loss))
    done = 0

    def stop(progress):
        nonlocal done
        done += 1
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        options.apply(job(model_of(), evaluate=loss, folder=tmp_path, on_progress=stop))
    again = []

    def counted(m):
        again.append(m)
        return loss(m)

    report = options.apply(job(model_of(), evaluate=counted, folder=tmp_path))
    assert report == whole
    if criterion == "iterative":
        assert len(again) == 1 + 5 + 4 + 3 - 3  # the full model and two candidates were rated
    with pytest.raises(CheckpointError, match="another recipe"):
        LayerPruning(criterion=criterion, n=2).apply(
            job(model_of(), evaluate=loss, folder=tmp_path)
        )


def test_magnitude_taylor_and_random_choose_as_they_say():
    model = model_of()
    for parameter in model.model.layers[3].parameters():
        parameter.data.mul_(0.5)
    assert LayerPruning(criterion="magnitude", n=1).choose(job(model)).blocks == (3,)
    model = idle(model_of(), 2)
    for name, parameter in model.model.layers[2].named_parameters():
        if not name.endswith("layernorm.weight"):
            parameter.data.zero_()
    flags = [p.requires_grad for p in model.parameters()]
    choice = LayerPruning(criterion="taylor", n=1).choose(job(model))
    assert choice.blocks == (2,)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    chosen = [set(at_random(8, n, {0}, seed=1)) for n in range(1, 8)]
    assert all(a < b for a, b in itertools.pairwise(chosen))
    assert chosen[-1] == set(range(1, 8))
    assert at_random(8, 3, seed=1) != at_random(8, 3, seed=2)


def test_taylor_is_gradient_times_weight_summed_over_the_block():
    model = model_of(count=2)
    sizes = LayerPruning(criterion="taylor", n=1).choose(job(model)).scores["sizes"]
    found = [next_token_loss(model, batch) for batch in batches_of()]
    (sum(t for t, _ in found) / sum(n for _, n in found)).backward()
    for layer, size in zip(model.model.layers, sizes, strict=True):
        expected = sum(float((p * p.grad).abs().sum()) for p in layer.parameters())
        assert size == pytest.approx(expected, rel=1e-9)


def test_the_choice_is_made_without_dropout_and_the_mode_is_kept():
    model = deep("gpt2", 4, resid_pdrop=0.5)
    for criterion in ("cosine", "perplexity", "taylor"):
        options = LayerPruning(criterion=criterion, n=2)
        calm = options.choose(job(model.eval()))
        assert options.choose(job(model.train())) == calm
        assert model.training


def test_encoders_are_pruned_by_what_their_blocks_do_to_the_stream():
    model = wide(deep("bert", 4))
    report = LayerPruning(n=2).apply(job(model))
    assert len(blocks(model)) == model.config.num_hidden_layers == 2
    assert len(report["cosines"]) == 4


@pytest.mark.parametrize("options", [LayerPruning(n=1, protect=()), ShortGPT(n=1)])
def test_a_dits_first_block_stays(options):
    model = wide(deep("dit"))
    report = options.apply(job(model, batches=dit_batches("dit")))
    assert report["dropped"] == [1]
    with pytest.raises(OptionError, match="n=2: of 2 blocks 1 are free to go"):
        ShortGPT(n=2).check(deep("dit"))


def test_shortgpt_is_the_cosine_over_tokens_with_no_block_protected():
    model = model_of()
    own = ShortGPT(n=3).apply(job(model_of()))
    seen = observe(model, batches_of())
    assert own["dropped"] == most_redundant(cosines(seen, "token"), 3)
    assert own["cosines"] == pytest.approx(cosines(seen, "token"))


# --- as a step of a chain


@pytest.mark.parametrize("criterion", ["cosine", "reverse", "simple", "random"])
def test_the_planned_shape_is_the_shape_of_the_result(criterion):
    options = LayerPruning(criterion=criterion, sparsity=0.5)
    model = model_of()
    options.apply(job(model))
    with torch.device("meta"):
        empty = type(model)(deep("llama", 6).config)
    options.shape(empty)
    shapes = [t.shape for t in model.state_dict().values()]
    assert [t.shape for t in empty.state_dict().values()] == shapes


def test_dropping_nothing_leaves_everything_as_it_was():
    model = model_of()
    expected, config = output(model, "llama"), model.config.to_dict()
    report = LayerPruning(n=0).apply(job(model))
    assert report["dropped"] == []
    assert torch.equal(output(model, "llama"), expected)
    assert model.config.to_dict() == config


def test_only_criteria_that_look_at_batches_ask_for_them():
    needs = {c: LayerPruning(criterion=c, n=1).calibrates for c in ("cosine", "taylor", "reverse")}
    assert needs == {"cosine": True, "taylor": True, "reverse": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give n, how many blocks go, or sparsity"),
        ({"n": 1, "sparsity": 0.5}, "and not both"),
        ({"n": -1}, "n=-1 must be at least 0"),
        ({"sparsity": 1.0}, "sparsity=1 must be between 0 and 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        LayerPruning(**options)


def test_an_unknown_criterion_is_refused():
    options = LayerPruning(n=1)
    object.__setattr__(options, "criterion", "best")  # past the suite's type checker
    with pytest.raises(OptionError, match="criterion='best' is not one of cosine, angular"):
        options.__post_init__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 6}, r"n=6: of 6 blocks 5 are free to go \(protect=0\)"),
        ({"n": 6, "protect": ()}, "names all 6 blocks"),
        ({"sparsity": 0.1}, r"sparsity=0.1 of 6 blocks is 0: between 1 and 5 can go"),
        ({"n": 1, "protect": (9,)}, "protect names block 9: there are blocks 0 to 5"),
        ({"n": 3, "criterion": "angular", "protect": (0, 3)}, "no 3 consecutive blocks are free"),
        ({"n": 1, "criterion": "iterative"}, "is led by a task: give the job an evaluator"),
    ],
)
def test_what_a_model_does_not_allow_is_refused(options, message):
    model = model_of()
    with pytest.raises(OptionError, match=message):
        LayerPruning(**options).apply(job(model))
    assert len(blocks(model)) == 6


def test_losses_need_models_that_predict_the_next_token():
    with pytest.raises(OptionError, match="criterion='perplexity' needs a model that predicts"):
        LayerPruning(criterion="perplexity", n=1).check(deep("bert", 4))
    with pytest.raises(OptionError, match="criterion='taylor' needs a model that predicts"):
        LayerPruning(criterion="taylor", n=1).check(deep("llada", 4))
    with pytest.raises(InputError, match="no token that follows another"):
        losses_without(model_of(), [{"input_ids": ids(2, 1, 3)}], (), [1])
