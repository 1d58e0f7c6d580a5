from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from whet.errors import InputError, OptionError
from whet.layers import relu2_linear as module
from whet.layers.relu2_linear import relu2_linear
from whet.layers.sparsify24 import inclusion24, keep24, magnitude24, mvue24, soft24


def tensors(rows=6, width=16, columns=5, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y1 = torch.randn(rows, width, generator=generator).to(dtype)
    weight = torch.randn(columns, width, generator=generator).to(dtype)
    return y1.requires_grad_(), weight.requires_grad_()


def gradients(h, *inputs, seed=9):
    upstream = torch.randn(h.shape, generator=torch.Generator().manual_seed(seed)).to(h.dtype)
    return torch.autograd.grad(h, inputs, upstream, retain_graph=True)


def saved_bytes(work, exclude=()):
    """Bytes of distinct storages that `work` keeps for the way back, parameters left out."""
    found = {}
    known = {t.untyped_storage().data_ptr() for t in exclude}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held: addresses stay apart
        return tensor

    with saved_tensors_hooks(pack, lambda t: t):
        kept = work()
    assert kept.requires_grad
    return sum(size for size, _ in found.values())


def test_without_sparsity_it_is_the_dense_layer():
    y1, weight = tensors()
    plain = y1.relu().square() @ weight.t()
    ours = relu2_linear(y1, weight, sparsify="none")
    assert torch.equal(ours, plain)
    for a, b in zip(gradients(ours, y1, weight), gradients(plain, y1, weight), strict=True):
        assert torch.allclose(a, b, rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(
        lambda y, w: relu2_linear(y, w, sparsify="none"), (y1, weight), atol=1e-7
    )


def test_the_masked_gradient_is_the_exact_one():
    y1, weight = tensors(rows=12)
    assert torch.autograd.gradcheck(relu2_linear, (y1, weight), eps=1e-7, atol=1e-6)


def test_the_masked_gradient_is_autograds_through_a_constant_mask():
    y1, weight = tensors(rows=40)
    y2 = y1.relu().square()
    plain = (y2 * keep24(y2).detach()) @ weight.t()
    ours = relu2_linear(y1, weight)
    assert torch.equal(ours, plain)
    for a, b in zip(gradients(ours, y1, weight), gradients(plain, y1, weight), strict=True):
        assert torch.allclose(a, b, rtol=1e-14, atol=0)


@pytest.mark.parametrize("rule", ["magnitude", "soft", "mvue"])
def test_the_straight_through_gradient_passes_what_was_dropped(rule):
    y1, weight = tensors(rows=40)
    y2 = y1.relu().square()
    scale = torch.tensor(1.5).double() if rule == "soft" else None
    sparse = {
        "magnitude": lambda: magnitude24(y2),
        "soft": lambda: 1.5 * soft24(y2),
        "mvue": lambda: mvue24(y2, torch.Generator().manual_seed(4)),
    }[rule]().detach()
    plain = (y2 + (sparse - y2.detach())) @ weight.t()
    ours = relu2_linear(
        y1,
        weight,
        sparsify=rule,
        gradient="ste",
        soft_scale=scale,
        generator=torch.Generator().manual_seed(4),
    )
    for a, b in zip(
        (ours, *gradients(ours, y1, weight)), (plain, *gradients(plain, y1, weight)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    dropped = (sparse == 0) & (y2 > 0)
    assert dropped.any()
    assert (gradients(ours, y1)[0][dropped] != 0).all()


def test_gradients_of_the_random_rule_are_unbiased():
    y1, weight = tensors(rows=1, width=4)
    stacked = y1.detach().expand(50_000, 4).clone().requires_grad_()
    out = relu2_linear(
        stacked,
        weight,
        sparsify="mvue",
        gradient="ste",
        generator=torch.Generator().manual_seed(1),
    )
    dense = y1.relu().square() @ weight.t()
    assert inclusion24(y1.detach().relu().square()).sum() <= 2
    error = out.std(0) / len(out) ** 0.5
    assert ((out.mean(0) - dense[0]).abs() <= 4 * error + 1e-12).all()


@pytest.mark.parametrize(
    "options",
    [{"sparsify": "none"}, {}, {"gradient": "ste"}, {"sparsify": "soft", "gradient": "ste"}],
)
def test_working_a_few_rows_at_a_time_changes_nothing(options, monkeypatch):
    y1, weight = tensors(rows=200)
    whole = relu2_linear(y1, weight, **options)
    expected = whole, *gradients(whole, y1, weight)
    monkeypatch.setattr(module, "_CACHE_VALUES", 64 * 16)  # 64 rows
    parts = relu2_linear(y1, weight, **options)
    for a, b in zip((parts, *gradients(parts, y1, weight)), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_no_rows_are_no_rows():
    y1, weight = tensors(rows=0)
    h = relu2_linear(y1, weight)
    assert h.shape == (0, 5)
    dy1, dweight = gradients(h, y1, weight)
    assert dy1.shape == (0, 16)
    assert not dweight.any()


def test_leading_dimensions_and_other_types_pass_through():
    y1, weight = tensors(rows=6)
    flat = relu2_linear(y1, weight)
    assert torch.equal(relu2_linear(y1.view(2, 3, 16), weight), flat.view(2, 3, 5))
    assert torch.allclose(relu2_linear(y1[0], weight), flat[0], rtol=1e-14, atol=1e-14)
    half = relu2_linear(y1.bfloat16(), weight)
    assert half.dtype == torch.bfloat16
    dy1, dweight = gradients(half, y1, weight)
    assert (dy1.dtype, dweight.dtype) == (torch.float64, torch.float64)


def test_it_trains_under_autocast():
    y1, weight = tensors(dtype=torch.float32)
    exact = gradients(relu2_linear(y1, weight), y1, weight)
    with torch.autocast("cpu", torch.bfloat16):
        h = relu2_linear(y1 @ torch.eye(16), weight)
    assert h.dtype == torch.bfloat16
    for a, b in zip(gradients(h, y1, weight), exact, strict=True):
        assert torch.allclose(a, b, rtol=0.05, atol=0.05 * float(b.abs().max()))


def test_only_the_gradients_asked_for_are_made():
    y1, weight = tensors()
    relu2_linear(y1, weight.detach()).sum().backward()
    assert y1.grad is not None
    y1, weight = tensors()
    relu2_linear(y1.detach(), weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_bytes_are_the_packed_ones(dtype):
    y1, weight = tensors(rows=64, width=128, dtype=dtype)
    full = y1.nbytes

    def kept(**options):
        return saved_bytes(lambda: relu2_linear(y1, weight, **options), exclude=(weight, y1))

    def plain():
        return y1.relu().square() @ weight.t()

    packed = kept()
    assert packed == {torch.float32: 0.53125, torch.bfloat16: 0.5625}[dtype] * full
    assert kept(sparsify="none") == full
    assert kept(gradient="ste") == full
    assert saved_bytes(plain, exclude=(weight, y1)) == 2 * full
    assert kept(sparsify="mvue", gradient="ste") == full + full // y1.element_size() // 8


def test_nothing_is_packed_where_no_gradient_is_wanted(monkeypatch):
    y1, weight = tensors()
    expected = relu2_linear(y1, weight)
    monkeypatch.setattr(module, "pack_kept24", None)
    with torch.no_grad():
        assert torch.equal(relu2_linear(y1, weight), expected)
    monkeypatch.undo()
    with torch.no_grad():
        assert not relu2_linear(y1, weight).requires_grad
    assert torch.equal(relu2_linear(y1.detach(), weight.detach()), relu2_linear(y1, weight))


def test_what_does_not_fit_is_refused():
    y1, weight = tensors()
    with pytest.raises(InputError, match="must agree"):
        relu2_linear(y1[:, :8], weight)
    with pytest.raises(OptionError, match="needs gradient='ste'"):
        relu2_linear(y1, weight, sparsify="soft")
