"""The definition against autograd over ``torch.func.jvp`` and against PyTorch's math attention, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastflow.kernels.attention import reference
from tests.compare import assert_close, math_attention
from tests.kernels.attention.problems import Problem, oracle

CASES = {
    "one query, one key": {"Nq": 1, "Nk": 1},
    "grouped heads": {"B": 2, "Hq": 4, "Hk": 2, "Dv": 3},
    "bool mask": {"mask": "bool"},
    "bias, broadcast": {"mask": "bias-broadcast", "B": 2},
    "causal, more queries": {"Nq": 7, "Nk": 5, "is_causal": True, "Hk": 1},
    "causal, more keys": {"Nq": 5, "Nk": 7, "is_causal": True},
}
MASKED_ROWS = {"bool mask, a fully masked row": {"mask": "bool-row"}, "bias, a fully masked row": {"mask": "bias-row"}}


def problem(**fields) -> Problem:
    return Problem(**{"Nq": 5, "Nk": 6, "D": 4, "Dv": 4, "K": 2, "dtype": torch.float64} | fields)


@pytest.mark.parametrize("name", CASES)
def test_attention_is_pytorchs_math_attention(name):
    x = problem(**CASES[name])
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(
            *x.primals, x.mask_tensor, is_causal=x.is_causal, scale=x.scale, enable_gqa=x.Hq != x.Hk
        )
    assert_close(reference.attention(*x.primals, x.mask_tensor, x.scale, x.is_causal), expected, 1e-14)


@pytest.mark.parametrize("name", CASES | MASKED_ROWS)
def test_attention_and_its_gradients_are_those_of_the_tests_oracle(name):
    x = problem(**(CASES | MASKED_ROWS)[name])
    leaves = [p.detach().clone().requires_grad_() for p in x.primals]
    out = reference.attention(*leaves, x.mask_tensor, x.scale, x.is_causal)
    expected = math_attention(
        *leaves, x.mask_tensor, is_causal=x.is_causal, scale=x.scale, enable_gqa=x.Hq != x.Hk
    )  # fmt: skip
    assert_close(out, expected, 1e-14)
    for actual, wanted in zip(torch.autograd.grad(out, leaves, x.G), torch.autograd.grad(expected, leaves, x.G)):
        assert_close(actual, wanted, 1e-13)


@pytest.mark.parametrize("name", CASES | MASKED_ROWS)
def test_closed_forms_are_autograd_over_jvp(name):
    x = problem(**(CASES | MASKED_ROWS)[name])
    values, grads = oracle(x, torch.float64)
    forward = reference.dual_forward(*x.primals, *x.ts, x.mask_tensor, **x.arguments())
    backward = reference.dual_backward(x.G, x.H, *x.primals, *x.ts, x.mask_tensor, **x.arguments())
    for actual, wanted in zip([*forward[:2], *backward], [*values, *grads], strict=True):
        assert_close(actual, wanted, 1e-13)


@pytest.mark.parametrize("name", MASKED_ROWS)
def test_fully_masked_rows_are_zero(name):
    x = problem(**MASKED_ROWS[name])
    out, t_out, lse, mu = reference.dual_forward(*x.primals, *x.ts, x.mask_tensor, **x.arguments())
    dq, _, _, dtq, *_ = reference.dual_backward(x.G, x.H, *x.primals, *x.ts, x.mask_tensor, **x.arguments())
    assert (reference.attention(*x.primals, x.mask_tensor, x.scale, x.is_causal)[:, :, 1] == 0).all()
    for rows in (out[:, :, 1], t_out[:, :, :, 1], mu[:, :, :, 1], dq[:, :, 1], dtq[:, :, :, 1]):
        assert (rows == 0).all()
    assert (lse[:, :, 1] == torch.inf).all()
    assert lse[:, :, 0].isfinite().all()


def test_half_precision_is_computed_in_float32():
    x = problem(dtype=torch.bfloat16)
    out = reference.attention(*x.primals, None, x.scale, False)
    wide = reference.attention(*(p.float() for p in x.primals), None, x.scale, False)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, wide.bfloat16())
