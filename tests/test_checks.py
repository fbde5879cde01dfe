"""Tensors whose memory does not hold their values, at every public op."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn.attention.bias import causal_upper_left
from torch.nn.parameter import UninitializedParameter

import fastflow as ff
from fastflow._checks import why_not_dense

X, T, PATH = torch.ones(2, 4), torch.full((2,), 0.5), ff.paths.CondOT()
X4 = torch.ones(1, 1, 2, 4)


class Dispatching(Tensor):
    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("computed on it")


class Overriding(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Plain(Tensor):
    pass


def nested(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x), layout=torch.jagged)


ODD: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "jagged": (nested, "a nested tensor: pad it"),
    "nested": (lambda x: torch.nested.nested_tensor(list(x)), "a nested tensor: pad it"),
    "sparse": (Tensor.to_sparse, r"one of layout torch.sparse_coo: pass x.to_dense\(\)"),
    "csr": (lambda x: x.flatten(0, -2).to_sparse_csr(), r"one of layout torch.sparse_csr: pass x.to_dense\(\)"),
    "mkldnn": (Tensor.to_mkldnn, r"pass x.to_dense\(\)"),
    "masked": (lambda x: torch.masked.masked_tensor(x, x > 0), r"a MaskedTensor: pass x.get_data\(\)"),
    "causal bias": (lambda x: causal_upper_left(2, 4), "a CausalBias, which has no values"),
    "dispatching": (lambda x: x.as_subclass(Dispatching), "a tensor of class Dispatching: pass a plain one"),
    "overriding": (lambda x: x.as_subclass(Overriding), "a tensor of class Overriding: pass a plain one"),
    "uninitialised": (lambda x: UninitializedParameter(), "a tensor of class UninitializedParameter"),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "query": lambda x: ff.attention(x(X4), X4, X4, backend="reference"),
    "value": lambda x: ff.attention(X4, X4, x(X4)),
    "key_tangent": lambda x: ff.attention_jvp(X4, X4, X4, None, x(X4)),
    "x0": lambda x: ff.interpolate(x(X), X, T, path=PATH),
    "x1": lambda x: ff.target_velocity(X, x(X), T, path=PATH),
    "noise": lambda x: ff.interpolate(X, X, T, path=ff.paths.Tube(0.1), noise=x(X)),
    "pred": lambda x: ff.flow_matching_loss(x(X), X, X, T, path=PATH),
    "weight": lambda x: ff.flow_matching_loss(X, X, X, T, path=PATH, weight=x(X)),
    "x": lambda x: ff.divergence(torch.sin, x(X), seed=0),
    "probes": lambda x: ff.divergence(torch.sin, X, probes=x(X[None])),
    "x0 ": lambda x: ff.sample_ode(lambda x, t: x, x(X), num_steps=2),
    "x1 ": lambda x: ff.log_likelihood(lambda x, t: x, x(X), num_steps=2, seed=0),
}


@pytest.mark.filterwarnings("ignore")  # prototypes of PyTorch
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ODD)
def test_tensors_without_values_are_refused_by_name(kind: str, call: str) -> None:
    make, message = ODD[kind]
    with pytest.raises(TypeError, match=f"^{call.strip()} must be a dense tensor, got .*{message}"):
        CALLS[call](make)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in ODD if kind != "causal bias"])
def test_an_odd_mask_is_refused_by_name(kind: str) -> None:
    make, message = ODD[kind]
    with pytest.raises(TypeError, match=f"^attn_mask must be a dense tensor, got .*{message}"):
        ff.attention(X4, X4, X4, attn_mask=make(torch.ones(2, 2)))


def test_what_torch_func_wraps_is_seen() -> None:
    odd = X.as_subclass(Overriding)
    for call in (
        lambda: vmap(lambda x: ff.interpolate(x, x, 0.5, path=PATH))(odd[None]),
        lambda: grad(lambda x: ff.interpolate(x, X, T, path=PATH).sum())(odd),
        lambda: jvp(lambda x: ff.interpolate(x, X, T, path=PATH), (odd,), (X,)),
    ):
        with pytest.raises(TypeError, match="must be a dense tensor, got a tensor of class Overriding"):
            call()


@pytest.mark.parametrize("wrap", [torch.nn.Parameter, torch.nn.Buffer, lambda x: x.as_subclass(Plain), Tensor.detach])
def test_tensors_with_values_pass(wrap: Callable[[Tensor], Tensor]) -> None:
    assert why_not_dense(wrap(X.clone())) is None
    assert torch.equal(ff.interpolate(wrap(X), wrap(X), T, path=PATH).as_subclass(Tensor), X)
