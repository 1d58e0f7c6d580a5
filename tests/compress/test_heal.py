import copy
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models.test_edits_drop import deep
from whet.compress.heal import (
    Heal,
    HealTraining,
    Row,
    block_linears,
    collate,
    read_responses,
    record_responses,
    text_rows,
)
from whet.compress.layer_pruning import LayerPruning
from whet.compress.method import Job, checked_order
from whet.errors import CheckpointError, InputError, OptionError
from whet.fit import FitSettings
from whet.fit.losses import cross_entropy, kl_divergence
from whet.fit.schedules import warmup_constant
from whet.layers.low_rank_linear import LowRankLinear
from whet.models.edits import drop_blocks, replace

VOCAB, END, PAD = 12, 1, 0
TOKENIZER = SimpleNamespace(pad_token_id=PAD, eos_token_id=END)
PROMPTS = [[2, 3 + n % 8] for n in range(24)]


def llama(seed=0, layers=3):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config).eval()


def counting(n):
    """What a row says: the prompt's number repeated and an end."""
    return [3 + n % 8] * 3 + [END]


@pytest.fixture(scope="module")
def teacher():
    """A model that has learnt to repeat a number and stop."""
    model = llama()
    settings = FitSettings(steps=150, learning_rate=1e-2, warmup=10, ema=0)
    rows = [Row(prompt, counting(n)) for n, prompt in enumerate(PROMPTS)]
    training = HealTraining(model, rows, settings, batch_size=8, pad=PAD)
    for step in range(settings.steps):
        loss, _ = training.loss(training.batch(step), "model")
        loss.backward()
        training.players["model"].update(step)
    return model.eval()


def texts(count=4, length=10):
    generator = torch.Generator().manual_seed(3)
    return [{"input_ids": torch.randint(2, VOCAB, (count, length), generator=generator)}]


def job(model, **more):
    more = {"batches": texts(), "tokenizer": TOKENIZER, "prompts": PROMPTS} | more
    return Job(model=model, **more)


def pruned(teacher):
    model = copy.deepcopy(teacher)
    LayerPruning(criterion="reverse", n=1).apply(job(model))
    return model


# --- what is learnt


def test_the_first_token_learnt_is_the_responses_first_and_the_end_is_learnt():
    rows = [Row([2, 5, 6], [7, 8, END]), Row([3], [4, END])]
    batch = collate(rows, pad=PAD)
    assert batch.tokens.tolist() == [[2, 5, 6, 7, 8, END], [3, 4, END, PAD, PAD, PAD]]
    for row, place in zip(rows, range(2), strict=True):
        learnt = batch.learnt[place].nonzero().flatten()
        assert learnt[0] == len(row.prompt)
        assert batch.tokens[place][learnt].tolist() == list(row.response)
    assert batch.attention_mask.sum(1).tolist() == [6, 3]


def test_the_loss_is_that_of_the_responses_alone(teacher):
    rows = [Row([2, 5, 6], [7, 8, END]), Row([3], [4, END])]
    settings = FitSettings(steps=1, learning_rate=1.0)
    training = HealTraining(teacher, rows, settings, batch_size=2, pad=PAD)
    batch = collate(rows, pad=PAD)
    by_hand = []
    for row in rows:
        ids = torch.tensor([[*row.prompt, *row.response]])
        logp = teacher(ids).logits[0].log_softmax(-1)
        places = range(len(row.prompt), ids.shape[1])
        by_hand += [-logp[place - 1, ids[0, place]] for place in places]
    loss, metrics = training.loss(batch, "model")
    assert float(loss) == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    assert 0 <= metrics["token_accuracy"] <= 1
    parts = training.split(batch, "model", 2)
    whole = sum(share * float(training.loss(part, "model")[0]) for part, share in parts)
    assert sum(share for _, share in parts) == pytest.approx(1)
    assert whole == pytest.approx(float(loss), rel=1e-5)
    teacher.eval()


def test_the_distilled_loss_mixes_in_the_originals_predictions(teacher):
    rows, student = [Row([2, 5], [5, END])], llama(1)
    settings = FitSettings(steps=1, learning_rate=1.0)
    batch = collate(rows, pad=PAD)
    losses = {}
    for distil in (0.0, 0.3, 1.0):
        other = teacher if distil else None
        options = {"batch_size": 1, "pad": PAD, "distil": distil, "temperature": 2.0}
        training = HealTraining(student, rows, settings, teacher=other, **options)
        losses[distil] = float(training.loss(batch, "model")[0])
    ids = torch.tensor([[2, 5, 5]])
    theirs, own = teacher(ids).logits[0, 1:], student(ids).logits[0, 1:]
    hard = float(cross_entropy(own, torch.tensor([5, END])).mean())
    soft = 4 * float(kl_divergence(theirs, own, temperature=2.0).mean())
    assert losses[0.0] == pytest.approx(hard, rel=1e-4)
    assert losses[1.0] == pytest.approx(soft, rel=1e-4)
    assert losses[0.3] == pytest.approx(0.7 * hard + 0.3 * soft, rel=1e-4)


def test_text_is_learnt_from_its_second_token_on_without_padding():
    ids = torch.tensor([[0, 5, 6, 7], [8, 9, 3, 4], [0, 0, 0, 5]])
    mask = (ids > 0).long()
    rows = text_rows([{"input_ids": ids, "attention_mask": mask}])
    assert [[*row.prompt, *row.response] for row in rows] == [[5, 6, 7], [8, 9, 3, 4]]
    assert [len(row.prompt) for row in rows] == [1, 1]
    with pytest.raises(InputError, match="no row of two tokens"):
        text_rows([{"input_ids": ids[:, :1]}])


def test_every_row_is_learnt_once_an_epoch():
    rows = [Row([2], [n % 8 + 3, END]) for n in range(8)]
    settings = FitSettings(steps=1, learning_rate=1.0)
    training = HealTraining(llama(), rows, settings, batch_size=4, pad=PAD)
    seen = [training.batch(step).tokens[:, 1].tolist() for step in range(4)]
    assert sorted(seen[0] + seen[1]) == sorted(seen[2] + seen[3]) == list(range(3, 11))
    assert seen[:2] != seen[2:]
    assert torch.equal(training.batch(1).tokens, training.batch(1).tokens)


def test_the_learning_rate_is_constant_after_its_warm_up():
    assert [warmup_constant(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warmup_constant(0)(0) == 1


# --- responses


def test_responses_are_the_originals_own_up_to_their_end(teacher, tmp_path):
    record_responses(teacher, TOKENIZER, PROMPTS, folder=tmp_path, identity={}, temperature=0)
    rows, dropped = read_responses(tmp_path)
    assert dropped == 0
    assert [row.prompt for row in rows] == PROMPTS
    assert [row.response for row in rows] == [counting(n) for n in range(len(PROMPTS))]


def test_responses_that_are_cut_off_are_dropped(teacher, tmp_path):
    options = {"identity": {}, "temperature": 0.0, "max_new_tokens": 3}
    record_responses(teacher, TOKENIZER, PROMPTS, folder=tmp_path / "a", **options)
    with pytest.raises(InputError, match="all 24 responses were cut off"):
        read_responses(tmp_path / "a")
    kept, dropped = read_responses(tmp_path / "a", keep_truncated=True)
    assert (len(kept), dropped) == (24, 0)
    long = [*PROMPTS[:3], [2, 3, 3], [2, 4, 4, 4]]  # of which the last is nearly done
    record_responses(teacher, TOKENIZER, long, folder=tmp_path / "b", **options)
    rows, dropped = read_responses(tmp_path / "b")
    assert dropped + len(rows) == 5
    assert all(row.response[-1] == END for row in rows)
    assert rows


def test_sampled_responses_depend_on_the_seed_alone(teacher, tmp_path):
    def responses(name, seed, noise):
        torch.manual_seed(noise)
        options = {"identity": {}, "temperature": 3.0, "top_p": 1.0, "max_new_tokens": 8}
        record_responses(teacher, TOKENIZER, PROMPTS, folder=tmp_path / name, seed=seed, **options)
        return read_responses(tmp_path / name, keep_truncated=True)[0]

    assert responses("a", 0, 1) == responses("b", 0, 2)
    assert responses("c", 1, 1) != responses("a", 0, 1)


def test_responses_end_where_the_context_does(tmp_path):
    model = deep("gpt2", 2)  # 32 positions, which it looks up
    record_responses(model, TOKENIZER, [[3] * 30], folder=tmp_path / "a", identity={})
    [row], _ = read_responses(tmp_path / "a", keep_truncated=True)
    assert len(row.response) <= 2
    with pytest.raises(InputError, match="a prompt of 32 tokens fills the context of 32"):
        record_responses(model, TOKENIZER, [[3] * 32], folder=tmp_path / "b", identity={})


def test_a_model_without_an_end_cannot_answer(tmp_path):
    model = llama()
    model.generation_config.eos_token_id = None
    with pytest.raises(OptionError, match="no end-of-text token"):
        record_responses(model, SimpleNamespace(), PROMPTS, folder=tmp_path, identity={})


# --- the step of a chain

QUICK = {"steps": 60, "learning_rate": 1e-2, "warmup": 5, "temperature": 0.0}


def right(model):
    """Share of the prompts that are answered as the teacher answers them."""
    given = torch.tensor(PROMPTS)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    out = model.generate(given, attention_mask=torch.ones_like(given), **options)
    rows = [row[: row.index(END) + 1] if END in row else row for row in out[:, 2:].tolist()]
    return sum(row == counting(n) for n, row in enumerate(rows)) / len(rows)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_pruned_model_learns_the_originals_answers(teacher, rank):
    model = copy.deepcopy(teacher)
    drop_blocks(model, [0, 1])
    assert right(model) < 0.8
    names, kind = [n for n, _ in model.named_parameters()], type(model)
    heads = model.lm_head.weight.detach().clone()
    report = Heal(**QUICK, rank=rank, dropout=0.0).apply(
        job(model, original=lambda: copy.deepcopy(teacher))
    )
    assert right(teacher) == 1
    assert right(model) > 0.9
    assert [n for n, _ in model.named_parameters()] == names
    assert type(model) is kind
    assert torch.equal(model.lm_head.weight, heads) == bool(rank)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.training
    assert report["rows"] == 24
    assert report["cut_off"] == 0
    assert report["last_loss"] < report["first_loss"]
    of_all = sum(p.numel() for p in model.parameters())
    of_updates = rank * (4 * (16 + 16) + 3 * (16 + 24))
    assert report["trained"] == (of_updates if rank else of_all)


def test_text_needs_no_original(teacher):
    model = pruned(teacher)
    report = Heal(data="text", **QUICK).apply(job(model))
    assert report["data"] == "text"
    assert report["rows"] == 4
    assert report["last_loss"] < report["first_loss"]


def test_known_answers_are_learnt_without_the_original():
    model = llama(1)
    answers = [counting(n) for n in range(len(PROMPTS))]
    options = Heal(data="answers", rank=0, steps=150, learning_rate=1e-2, warmup=5)
    report = options.apply(job(model, answers=answers))
    assert right(model) == 1
    assert report["rows"] == 24
    with pytest.raises(OptionError, match="an answer each: the job has 24 and 0"):
        options.apply(job(model))


def test_without_prompts_the_texts_beginnings_are_answered(teacher):
    model = pruned(teacher)
    options = {"prompt_length": 3, "keep_truncated": True, "max_new_tokens": 5} | QUICK
    report = Heal(**options).apply(job(model, prompts=(), original=lambda: teacher))
    assert report["rows"] == 4


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(teacher, rank, tmp_path, monkeypatch):
    options = Heal(**QUICK | {"steps": 120}, rank=rank)
    whole, again = pruned(teacher), pruned(teacher)
    options.apply(job(whole, original=lambda: teacher, folder=tmp_path / "whole"))
    steps = 0

    def stop(self, step):
        nonlocal steps
        steps += 1
        if steps == 110:
            raise KeyboardInterrupt
        return own(self, step)

    own = HealTraining.batch
    with monkeypatch.context() as patched:
        patched.setattr(HealTraining, "batch", stop)
        with pytest.raises(KeyboardInterrupt):
            options.apply(job(again, original=lambda: teacher, folder=tmp_path / "stopped"))
    assert not any("lora" in name for name, _ in again.named_parameters())
    again = pruned(teacher)  # as another process would load it
    answered = []

    def original():
        answered.append(1)
        return teacher

    options.apply(job(again, original=original, folder=tmp_path / "stopped"))
    assert not answered  # the responses were there
    for (name, one), two in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), name
    third = pruned(teacher)
    report = options.apply(job(third, original=original, folder=tmp_path / "stopped"))
    assert report["steps"] == 120
    assert torch.equal(
        third.model.layers[1].mlp.up_proj.weight, again.model.layers[1].mlp.up_proj.weight
    )
    with pytest.raises(CheckpointError, match="another recipe"):
        Heal(**QUICK).apply(job(pruned(teacher), original=original, folder=tmp_path / "stopped"))


def test_the_original_is_left_as_it_was(teacher):
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    Heal(**QUICK, distil=0.5).apply(job(pruned(teacher), original=lambda: teacher))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    teacher.requires_grad_(True)


def test_an_error_leaves_a_plain_model(teacher, monkeypatch):
    model = pruned(teacher)
    before = copy.deepcopy(model.state_dict())

    def fail(self, batch, turn):
        raise RuntimeError("no room")

    monkeypatch.setattr(HealTraining, "loss", fail)
    with pytest.raises(RuntimeError, match="no room"):
        Heal(**QUICK).apply(job(model, original=lambda: teacher))
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- aiming


@pytest.mark.parametrize(
    ("name", "endings"),
    [
        (
            "llama",
            "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
            "mlp.gate_proj mlp.up_proj mlp.down_proj",
        ),
        ("gpt2", "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj"),
        (
            "phi",
            "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.dense mlp.fc1 mlp.fc2",
        ),
        ("phi3", "self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj"),
        ("qwen3_moe", "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"),
        (
            "qwen2_moe",
            "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj "
            "mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert.down_proj",
        ),
    ],
)
def test_roles_say_which_layers_are_aimed_at(name, endings):
    model = deep(name, 2)
    found = [layer.partition(".0.")[2] for layer in block_linears(model) if ".0." in layer]
    assert found == endings.split()


def test_the_parts_of_a_low_rank_layer_are_aimed_at():
    model = llama(layers=1)
    replace(model, "model.layers.0.mlp.up_proj", LowRankLinear(16, 24, 4, False))
    names = [name for name in block_linears(model) if "up_proj" in name]
    assert names == ["model.layers.0.mlp.up_proj.down", "model.layers.0.mlp.up_proj.up"]


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma2", "qwen2_moe"])
@pytest.mark.parametrize("targets", ["roles", "all-linear"])
def test_other_families_are_healed_too(name, targets):
    model = deep(name, 2)
    before = copy.deepcopy(model.state_dict())
    batches = [
        {"input_ids": torch.randint(3, 37, (4, 8), generator=torch.Generator().manual_seed(0))}
    ]
    report = Heal(data="text", steps=3, warmup=0, targets=targets).apply(
        job(model, batches=batches)
    )
    after = model.state_dict()
    assert list(after) == list(before)
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed
    assert changed <= {f"{layer}.weight" for layer in block_linears(model)} | {
        key for key in after if "expert" in key and targets == "all-linear"
    }
    assert json.dumps(report)


def test_healing_comes_after_depth_and_before_number_formats():
    checked_order([LayerPruning(n=1), Heal()])
    with pytest.raises(OptionError, match=r"layer-pruning \(depth\) comes after heal"):
        checked_order([Heal(), LayerPruning(n=1)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"rank": -1}, "rank=-1 must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate=0 must be above 0"),
        ({"dropout": 1.0}, "dropout=1 must be at least 0 and below 1"),
        ({"distil": 1.5}, "distil=1.5 must be between 0 and 1"),
        ({"top_p": 0.0}, "top_p=0 must be above 0"),
        ({"accumulation": 9}, "accumulation=9 must be at most batch_size=8"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Heal(**options)


def test_what_cannot_be_healed_is_refused(teacher):
    with pytest.raises(OptionError, match="give the job `original`"):
        Heal().apply(job(pruned(teacher)))
    with pytest.raises(OptionError, match="give the job `original`"):
        Heal(data="text", distil=0.5).apply(job(pruned(teacher)))
    with pytest.raises(OptionError, match="predict the next token, which a BertForMaskedLM"):
        Heal().check(deep("bert", 2))
    with pytest.raises(OptionError, match="predict the next token, which a LLaDAModelLM"):
        Heal().check(deep("llada", 2))
    sparse = pruned(teacher)
    sparse.model.layers[1].mlp.up_proj.weight.data[:, ::2] = 0
    with pytest.raises(OptionError, match=r"up_proj.weight is 50% zeros, which healing would fill"):
        Heal(data="text").apply(job(sparse))
