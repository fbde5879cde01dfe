"""Special fields, invalid arguments, and hints."""

import logging
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastflow as ff
from fastflow.ops.divergence import estimators
from fastflow.ops.divergence import jacobian as _jacobian
from tests.ops.divergence.problems import linear, matrix, methods, modes, points


class Doubled(torch.autograd.Function):
    """2 x without a forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_auto_takes_a_field_without_forward_mode_in_reverse(monkeypatch, caplog):
    monkeypatch.setattr(_jacobian, "_choose", lambda x: "forward")
    _jacobian._log_once.cache_clear()
    fields = [Doubled.apply, lambda x: torch.cdist(x, x).new_zeros(()) + 2 * x + 0 * torch.cdist(x, x).sum()]
    for field in fields:
        with caplog.at_level(logging.INFO, "fastflow"):
            r = ff.divergence(field, points(4, 3), num_probes=5, chunk_size=2)
        assert torch.allclose(r.divergence, torch.tensor(6.0, dtype=torch.float64))
    assert "no forward mode" in caplog.text
    with pytest.raises(NotImplementedError, match="forward"):
        ff.divergence(Doubled.apply, points(4, 3), mode="forward")


def test_errors_of_the_field_itself_are_not_swallowed(monkeypatch):
    monkeypatch.setattr(_jacobian, "_choose", lambda x: "forward")

    def broken(x: Tensor) -> Tensor:
        raise NotImplementedError("not yet")

    with pytest.raises(NotImplementedError, match="not yet"):
        ff.divergence(broken, points(4, 3))


def test_random_fields_show_every_probe_the_same_field():
    x = points(4, 50)
    for mode in ("forward", "reverse"):
        torch.manual_seed(0)
        r = ff.divergence(lambda x: F.dropout(x, 0.5), x, num_probes=3, mode=mode)
        assert torch.equal(r.divergence, 2.0 * (r.value != 0).sum(1))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize(
    "field",
    [lambda x: x - x.mean(0), lambda x: x + x.roll(1, 0), lambda x: x + 1e-30 * x[4] * (torch.arange(7) == 5)[:, None]],
    ids=["mean", "neighbour", "one pair"],
)
def test_interacting_samples_are_found(field, mode):
    with pytest.raises(ValueError, match="field must treat the samples of a batch independently"):
        ff.divergence(field, points(7, 3), mode=mode, check_independence=True)


@modes
def test_independent_samples_pass_the_check(mode):
    A, x = matrix(3), points(7, 3)
    r = ff.divergence(linear(A), x, method="exact", mode=mode, check_independence=True)
    assert torch.allclose(r.divergence, A.trace())
    assert ff.divergence(linear(A), x[:1], mode=mode, check_independence=True).value.shape == (1, 3)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
@methods
def test_empty(shape, method):
    r = ff.divergence(torch.sin, torch.empty(shape), **method)
    assert r.value.shape == shape
    assert torch.equal(r.divergence, torch.zeros(shape[0]))


@modes
def test_inference_mode_is_refused(mode):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode\(\): use torch.no_grad\(\)"):
        ff.divergence(torch.sin, points(4, 3), mode=mode)


class PeakMemory(TorchDispatchMode):
    """Track the largest number of bytes held at one time by tensors made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor):
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_memory_grows_with_the_chunk_and_not_with_the_probes(mode):
    W = torch.randn(64, 4096)

    def field(x: Tensor) -> Tensor:
        return torch.tanh(x @ W) @ W.T

    def peak(**kwargs) -> int:
        with torch.no_grad(), PeakMemory() as memory:
            ff.divergence(field, torch.randn(16, 64), mode=mode, **kwargs)
        return memory.peak

    small, large = peak(num_probes=4, chunk_size=4), peak(num_probes=64, chunk_size=4)
    assert large < 1.2 * small
    assert peak(num_probes=64, chunk_size=64) > 6 * small
    assert peak(method="exact", chunk_size=4) < 1.2 * small


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "hutch"}, "method must be one of 'hutchinson', 'exact', 'hutch\\+\\+', got 'hutch'"),
        ({"distribution": "normal"}, "distribution must be one of 'rademacher', 'gaussian', got 'normal'"),
        ({"mode": "backward"}, "mode must be one of 'auto', 'forward', 'reverse', got 'backward'"),
        ({"backend": "cuda"}, "backend must be one of 'auto', 'triton', 'reference', got 'cuda'"),
        ({"num_probes": 0}, "num_probes must be at least 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must satisfy 0 <= seed"),
        ({"probes": torch.ones(2, 4, 2)}, r"probes must be \[K, 4, 3\] with K >= 1, got shape \(2, 4, 2\)"),
        ({"probes": torch.ones(0, 4, 3)}, r"probes must be \[K, 4, 3\] with K >= 1, got shape \(0, 4, 3\)"),
        ({"probes": torch.tensor(1.0)}, r"probes must be \[K, 4, 3\] with K >= 1, got shape \(\)"),
        ({"probes": torch.ones(2, 4, 3), "method": "exact"}, "probes are for method 'hutchinson', got method 'exact'"),
    ],
)
def test_bad_values_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ff.divergence(torch.sin, torch.ones(4, 3), **kwargs)


@modes
def test_a_field_of_another_shape_is_named(mode):
    with pytest.raises(ValueError, match=r"field must return the shape of x, \(4, 3\), got shape \(4, 1\)"):
        ff.divergence(lambda x: x[:, :1], torch.ones(4, 3), mode=mode)
    with pytest.raises(TypeError, match="field must return a tensor, got tuple"):
        ff.divergence(lambda x: (x, x), torch.ones(4, 3), mode=mode)


def test_bad_types_are_named():
    with pytest.raises(TypeError, match=r"x must have a floating point dtype, got torch.int64"):
        ff.divergence(torch.sin, torch.ones(4, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x must be a tensor, got list"):
        ff.divergence(torch.sin, [1.0])
    with pytest.raises(ValueError, match=r"x must be \[B, ...\], got a scalar"):
        ff.divergence(torch.sin, torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"probes must have a floating point dtype, got torch.int64"):
        ff.divergence(torch.sin, torch.ones(4, 3), probes=torch.ones(1, 4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="backend='triton' cannot serve divergence"):
        ff.divergence(torch.sin, points(4, 3), backend="triton")


def test_more_probes_than_dimensions_are_allowed_with_a_hint(caplog):
    estimators._hint_once.cache_clear()
    with caplog.at_level(logging.WARNING, "fastflow"):
        ff.divergence(torch.sin, points(4, 3), num_probes=3)
        assert not caplog.text
        ff.divergence(torch.sin, points(4, 3), num_probes=4)
    assert "method='exact' costs less" in caplog.text
