import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whet.errors import InputError, NonFiniteError, OptionError
from whet.fit.losses import (
    cross_entropy,
    distillation,
    entropy,
    kl_divergence,
    masked_mean,
    reverse_kl_divergence,
)

ROWS, VOCAB = 7, 11


def logits(seed, rows=ROWS, vocab=VOCAB, dtype=torch.float64):
    drawn = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, vocab, generator=drawn, dtype=dtype)


TEACHER, STUDENT = logits(0), logits(1)
TARGETS = torch.tensor([0, 10, 3, 3, 5, 1, 9])


def plain_kl(p, q):
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


# Every loss with the same thing written with torch's own functions on whole tensors.
LOSSES = {
    "kl": (
        lambda s, **k: kl_divergence(TEACHER, s, temperature=1.7, **k),
        lambda s: plain_kl((TEACHER / 1.7).log_softmax(-1), (s / 1.7).log_softmax(-1)),
    ),
    "reverse_kl": (
        lambda s, **k: reverse_kl_divergence(TEACHER, s, temperature=0.6, **k),
        lambda s: plain_kl((s / 0.6).log_softmax(-1), (TEACHER / 0.6).log_softmax(-1)),
    ),
    "cross_entropy": (
        lambda s, **k: cross_entropy(s, TARGETS, **k),
        lambda s: F.cross_entropy(s, TARGETS, reduction="none"),
    ),
    "entropy": (
        lambda s, **k: entropy(s, temperature=2.5, **k),
        lambda s: torch.distributions.Categorical(logits=s / 2.5).entropy(),
    ),
    "distillation": (
        lambda s, **k: distillation(TEACHER, s, TARGETS, temperature=2.0, weight=0.3, **k),
        lambda s: (
            0.3 * 4 * plain_kl((TEACHER / 2).log_softmax(-1), (s / 2).log_softmax(-1))
            + 0.7 * F.cross_entropy(s, TARGETS, reduction="none")
        ),
    ),
}
every_loss = pytest.mark.parametrize(("loss", "plain"), LOSSES.values(), ids=[*LOSSES])


def values_and_gradient(function, student=STUDENT):
    student = student.clone().requires_grad_()
    values = function(student)
    upstream = torch.linspace(-1, 2, len(values), dtype=values.dtype)
    values.backward(upstream)
    return values.detach(), student.grad


@every_loss
@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
def test_chunks_change_nothing(loss, plain, chunk):
    got = values_and_gradient(lambda s: loss(s, chunk=chunk))
    for one, two in zip(got, values_and_gradient(plain), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@every_loss
def test_rows_that_do_not_count_give_nothing_and_are_not_looked_at(loss, plain):
    mask = torch.tensor([True, False, True, True, False, False, True])
    wanted = values_and_gradient(lambda s: plain(s).where(mask, 0.0))
    student = STUDENT.clone()
    student[~mask] = math.nan
    got = values_and_gradient(lambda s: loss(s, mask=mask, chunk=2), student)
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    nothing = torch.zeros(ROWS, dtype=torch.bool)
    values, gradient = values_and_gradient(lambda s: loss(s, mask=nothing))
    assert not values.any()
    assert not gradient.any()


class Allocations(TorchDispatchMode):
    """Sizes of the tensors that operations make (views of others left out)."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        held = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if torch.is_tensor(t)}
        self.sizes += [
            t.untyped_storage().nbytes() // t.element_size()
            for t in tree_leaves(out)
            if torch.is_tensor(t) and t.untyped_storage().data_ptr() not in held
        ]
        return out


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "cross_entropy", "entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_beside_the_gradient_nothing_is_as_large_as_the_logits(name, dtype):
    rows, vocab, chunk = 64, 50, 4
    teacher, student = logits(2, rows, vocab, dtype), logits(3, rows, vocab, dtype)
    student.requires_grad_()
    losses = {
        "kl": lambda: kl_divergence(teacher, student, chunk=chunk, temperature=2.0),
        "reverse_kl": lambda: reverse_kl_divergence(teacher, student, chunk=chunk),
        "cross_entropy": lambda: cross_entropy(student, torch.arange(rows) % vocab, chunk=chunk),
        "entropy": lambda: entropy(student, chunk=chunk),
    }
    with Allocations() as seen:
        loss = losses[name]().sum()
    assert max(seen.sizes) == chunk * vocab
    with Allocations() as seen:
        loss.backward()
    assert sum(size > chunk * vocab for size in seen.sizes) == 1
    assert max(seen.sizes) == rows * vocab


def test_the_default_chunk_bounds_scratch_too():
    student = logits(3, 80, 2**15, torch.float32)
    with Allocations() as seen:
        entropy(student)
    assert max(seen.sizes) == 2**20


def test_half_precision_is_worked_out_in_float32():
    teacher, student = TEACHER.bfloat16(), STUDENT.bfloat16()
    values, gradient = values_and_gradient(lambda s: kl_divergence(teacher, s), student)
    wide, slope = values_and_gradient(
        lambda s: kl_divergence(teacher.double(), s), student.double()
    )
    assert values.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(values.double(), wide, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, slope.bfloat16(), rtol=1e-2, atol=1e-6)


def test_tokens_that_cannot_be_drawn_count_as_nothing():
    """-inf in the same places gives what the smaller vocabulary gives."""
    gone = torch.tensor([2, 7])
    left = torch.tensor([k for k in range(VOCAB) if k not in gone])
    teacher, student = (t.index_fill(1, gone, -torch.inf) for t in (TEACHER, STUDENT))
    for function in (kl_divergence, reverse_kl_divergence):
        values, slope = values_and_gradient(lambda s, f=function: f(teacher, s), student)
        small = values_and_gradient(lambda s, f=function: f(TEACHER[:, left], s), STUDENT[:, left])
        torch.testing.assert_close(values, small[0])
        torch.testing.assert_close(slope[:, left], small[1])
        assert not slope[:, gone].any()
    values, slope = values_and_gradient(entropy, student)
    torch.testing.assert_close(values, entropy(STUDENT[:, left]))
    assert not slope[:, gone].any()
    # A token the first distribution lacks may have any probability in the second.
    assert kl_divergence(teacher, STUDENT).isfinite().all()
    assert reverse_kl_divergence(TEACHER, student).isfinite().all()


def test_the_size_of_the_soft_gradient_does_not_depend_on_the_temperature():
    def norm(temperature):
        soft = values_and_gradient(
            lambda s: distillation(TEACHER, s, TARGETS, temperature=temperature)
        )
        return float(soft[1].norm())

    assert norm(300.0) == pytest.approx(norm(100.0), rel=0.05)


def test_a_student_that_is_its_teacher_has_no_divergence_and_no_gradient():
    for function in (kl_divergence, reverse_kl_divergence):
        values, slope = values_and_gradient(lambda s, f=function: f(STUDENT, s))
        assert values.abs().max() < 1e-14
        assert slope.abs().max() < 1e-14


def with_value(value, row=4):
    made = STUDENT.clone()
    made[row, 2] = value
    return made


@every_loss
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_with_their_row(loss, plain, value):
    with pytest.raises(NonFiniteError, match="the loss of row 4 is "):
        loss(with_value(value), chunk=2)


def test_infinite_divergences_are_refused():
    lacking = with_value(-math.inf)
    with pytest.raises(NonFiniteError, match="row 4 is inf"):
        kl_divergence(TEACHER, lacking)
    with pytest.raises(NonFiniteError, match="row 4 is inf"):
        reverse_kl_divergence(lacking, STUDENT)
    with pytest.raises(NonFiniteError, match="row 2 is inf"):
        cross_entropy(with_value(-math.inf, row=2), torch.full((ROWS,), 2))
    with pytest.raises(NonFiniteError, match="row 0 is nan"):
        entropy(torch.full((1, 3), -math.inf))
    with pytest.raises(NonFiniteError, match="row 4 is nan"):
        kl_divergence(with_value(math.nan), STUDENT)


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        (lambda: kl_divergence(TEACHER[:, :9], STUDENT), InputError, r"\(7, 9\).*\(7, 11\)"),
        (lambda: reverse_kl_divergence(TEACHER[1:], STUDENT), InputError, "must agree"),
        (lambda: cross_entropy(STUDENT, TARGETS[1:]), InputError, r"targets has shape \(6,\)"),
        (lambda: cross_entropy(STUDENT, TARGETS + 1), InputError, "between 1 and 11: the voc"),
        (lambda: cross_entropy(STUDENT, TARGETS - 1), InputError, "between -1 and 9: the voc"),
        (lambda: entropy(STUDENT[0]), InputError, r"\(11,\): \[rows, vocabulary\]"),
        (lambda: entropy(STUDENT, mask=TARGETS > 1e9)[:0], None, ""),
        (lambda: entropy(STUDENT, mask=TARGETS), InputError, "mask is torch.int64"),
        (lambda: entropy(STUDENT, mask=TARGETS[1:] > 0), InputError, r"shape \(6,\): torch.bool"),
        (lambda: entropy(STUDENT, temperature=0), OptionError, "temperature=0 must be above 0"),
        (lambda: entropy(STUDENT, temperature=math.nan), OptionError, "temperature=nan"),
        (lambda: entropy(STUDENT, chunk=0), OptionError, "chunk=0 must be at least 1"),
        (lambda: distillation(TEACHER, STUDENT, TARGETS, weight=1.5), OptionError, "weight=1.5"),
        (lambda: masked_mean(torch.ones(2), torch.zeros(2).bool()), InputError, "over 0 values"),
        (lambda: masked_mean(torch.ones(0)), InputError, "over 0 values"),
    ],
)
def test_bad_input(call, error, why):
    if error is None:
        call()
        return
    with pytest.raises(error, match=why) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_target_that_does_not_count_may_be_anything():
    mask = TARGETS != 10
    values = cross_entropy(STUDENT, TARGETS.where(mask, -100), mask=mask)
    torch.testing.assert_close(values[mask], cross_entropy(STUDENT, TARGETS)[mask])


def test_the_mean_is_over_what_counts():
    values = torch.tensor([1.0, math.nan, 4.0], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, False, True]))
    assert mean == 2.5
    mean.backward()
    assert values.grad.tolist() == [0.5, 0.0, 0.5]
    assert masked_mean(torch.tensor([[1.0, 2.0], [3.0, 6.0]])) == 3
