"""Switching ``replace_ops`` on and off: nesting, threads, generators, imports by name, and PyTorch's own modules."""

import copy
import gc
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm as layer_norm_by_name
from torch.nn.functional import scaled_dot_product_attention as attention_by_name
from torch.utils.checkpoint import checkpoint

import fastflow as ff
from fastflow.ops.replace.activation import SETTINGS
from fastflow.ops.replace.state import active_backend
from tests.compare import assert_close, math_layer_norm, tensors

Call = Callable[..., Tensor]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


X, V = draw(2, 3, 5, 8), draw(2, 3, 8, 5).mT


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (8,))


def slope(function: Call) -> Tensor:
    """The gradient through a tangent, in which PyTorch's layer norm is wrong."""
    return grad(lambda x: jvp(function, (x,), (V,))[1].square().sum())(X)


def written_out(x: Tensor) -> Tensor:
    return math_layer_norm(x, (8,))


RIGHT = slope(written_out)


def is_right(function: Call = norm) -> bool:
    return torch.allclose(slope(function), RIGHT, rtol=1e-8)


@pytest.fixture(autouse=True)
def originals_come_back() -> Iterator[None]:
    before = [(owner, name, vars(owner).get(name)) for owner, name, _ in SETTINGS]
    yield
    assert active_backend() is None
    assert all(vars(owner).get(name) is value for owner, name, value in before)
    assert torch.overrides._get_current_function_mode_stack() == []


def test_linear_norm_attention() -> None:
    """The gradient through the tangent, which is wrong with PyTorch's norm."""

    def model(norm: Call) -> Call:
        weight = draw(8, 8)
        return lambda x: F.scaled_dot_product_attention(*(norm(F.linear(x, weight)),) * 3)

    with sdpa_kernel(SDPBackend.MATH):
        expected, stock = slope(model(written_out)), slope(model(norm))
    with ff.replace_ops():
        actual = slope(model(norm))
    assert_close(actual, expected, 1e-10)
    assert torch.linalg.vector_norm(stock - expected) > 0.05 * torch.linalg.vector_norm(expected)


def test_context_ends_after_an_error() -> None:
    assert not is_right()
    with pytest.raises(TypeError), ff.replace_ops():
        norm("not a tensor")
    assert not is_right()


def test_nesting_and_re_entering() -> None:
    context = ff.replace_ops("reference")
    with ff.replace_ops("triton"), context:
        assert active_backend() == "reference"
        with context, ff.replace_sdpa():
            assert active_backend() == "auto"
        assert active_backend() == "reference"
    with context:
        assert is_right()


def test_contexts_left_in_any_order() -> None:
    first, second = ff.replace_ops("reference"), ff.replace_ops()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert active_backend() == "auto"
    assert is_right()
    second.__exit__(None, None, None)


def test_functions_imported_by_name() -> None:
    by_name = [lambda x: layer_norm_by_name(x, (8,)), lambda x: torch.ops.aten.layer_norm.default(x, [8])]
    assert not any(map(is_right, by_name))
    with ff.replace_ops():
        assert all(map(is_right, by_name))
        jvp(attention_by_name, (X, X, X), (V, V, V))


def test_decorator_of_functions_and_methods() -> None:
    class Model(nn.Module):
        @ff.replace_ops(backend="reference")
        def forward(self, x: Tensor, again: bool = True) -> Tensor:
            """Normalize."""
            assert active_backend() == "reference"
            return self.forward(x, False) if again else norm(x)

    assert is_right(Model())
    assert Model.forward.__doc__ == "Normalize."
    copied = pickle.loads(pickle.dumps(copy.deepcopy(ff.replace_ops("reference"))))
    assert is_right(copied(norm))


def test_decorated_generator_is_inside_only_while_it_runs() -> None:
    log = []

    @ff.replace_ops()
    def steps(x: int) -> Iterator[int]:
        try:
            while True:
                assert active_backend() == "auto"
                x += yield x
        except ValueError:
            yield -1
        finally:
            log.append(active_backend())
        return "end"

    generator = steps(1)
    assert next(generator) == 1
    assert active_backend() is None
    assert generator.send(2) == 3
    assert generator.throw(ValueError()) == -1
    with pytest.raises(StopIteration, match="end"):
        next(generator)
    abandoned = steps(0)
    next(abandoned)
    abandoned.close()
    assert log == ["auto", "auto"]
    assert active_backend() is None


def test_suspended_generator_keeps_its_context() -> None:
    def steps() -> Iterator[None]:
        with ff.replace_ops():
            yield

    generator = steps()
    next(generator)
    with ff.replace_ops("reference"):
        del generator
        gc.collect()
        assert active_backend() == "reference"
        assert is_right()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_keep_the_backend_of_their_forward(use_reentrant: bool) -> None:
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(active_backend())
        return x.sin().cos()

    x = X.clone().requires_grad_()
    with ff.replace_ops("reference"):
        inside = checkpoint(function, x, use_reentrant=use_reentrant)
    outside = checkpoint(function, x, use_reentrant=use_reentrant)
    with ff.replace_ops():
        (inside + outside).sum().backward()
    assert sorted(map(str, seen)) == ["None", "None", "reference", "reference"]


def test_jvp_of_a_checkpoint_is_right_or_refused() -> None:
    """PyTorch keeps no tangents for a recomputation; the backward through one raises, or is right."""

    def loss(function: Call) -> Tensor:
        x = X.clone().requires_grad_()
        return torch.autograd.grad(jvp(function, (x,), (V,))[1].square().sum(), x)[0]

    def checkpointed(x: Tensor) -> Tensor:
        return checkpoint(norm, x, use_reentrant=False)

    with ff.replace_ops():
        try:
            tangent = jvp(checkpointed, (X,), (V,))[1]
            actual = loss(checkpointed)
        except (RuntimeError, NotImplementedError):
            return
        assert_close(tangent, jvp(norm, (X,), (V,))[1], 1e-12)
        expected = loss(written_out)
    assert_close(actual, expected, 1e-8)


def test_coroutine() -> None:
    @ff.replace_ops()
    async def run() -> bool:
        return is_right()

    with pytest.raises(StopIteration, match="True"):
        run().send(None)


async def asynchronous() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("thing", [nn.Linear, asynchronous])
def test_decorator_refuses(thing: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="replace_ops decorates functions and methods, got"):
        ff.replace_ops()(thing)


def test_bad_backends() -> None:
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'reference', got 'cuda'"):
        ff.replace_ops("cuda")
    with pytest.raises(ValueError, match="backend must be one of"):
        ff.replace_ops.install("cuda")
    with pytest.raises(TypeError, match=r"write @replace_ops\(\)"):
        ff.replace_ops(norm)


def test_install() -> None:
    ff.replace_ops.install()
    ff.replace_ops.install("reference")
    try:
        assert active_backend() == "reference"
        assert is_right(lambda x: layer_norm_by_name(x, (8,)))
        with ff.replace_ops("auto"):
            assert active_backend() == "auto"
        assert is_right()
    finally:
        ff.replace_ops.uninstall()
        ff.replace_ops.uninstall()
    assert not is_right()


def test_threads() -> None:
    """Threads started inside, imports by name too; threads that were there before; threads with their own context."""
    found = {}

    def attends_by_name() -> bool:
        """PyTorch's own attention, a built-in function, refuses tangents."""
        try:
            jvp(attention_by_name, (X, X, X), (V, V, V))
        except NotImplementedError:
            return False
        return True

    class Subclass(threading.Thread):
        def run(self) -> None:
            found["subclass"] = attends_by_name()

    with ThreadPoolExecutor(1) as early, ThreadPoolExecutor(1) as late:
        assert not early.submit(is_right).result()
        with ff.replace_ops("reference"):
            assert early.submit(is_right).result()
            assert late.submit(attends_by_name).result()
            thread = Subclass()
            thread.start()
            thread.join()
            assert late.submit(ff.replace_ops()(active_backend)).result() == "auto"
            assert late.submit(active_backend).result() == "reference"
        assert not late.submit(is_right).result()
        assert not late.submit(attends_by_name).result()
    assert found["subclass"]


def test_many_threads_enter_and_leave() -> None:
    def work(_: int) -> bool:  # PyTorch's own jvp is not safe in several threads
        with ff.replace_ops():
            return active_backend() == "auto" and F.layer_norm is not layer_norm_by_name

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(400)))


def test_functional_call_and_fx() -> None:
    model = nn.LayerNorm(8).double()
    with ff.replace_ops():
        assert is_right(lambda x: functional_call(model, dict(model.named_parameters()), (x,)))
        traced = torch.fx.symbolic_trace(lambda q: F.scaled_dot_product_attention(q, q, norm(q)))
        jvp(traced, (X,), (V,))
    assert "torch.nn.functional.layer_norm" in traced.code
    assert "scaled_dot_product_attention" in traced.code
    with pytest.raises(NotImplementedError, match="does not support it"):
        jvp(traced, (X,), (V,))


@pytest.mark.parametrize("transform", [None, "jvp", "jvp of grad"])
def test_attention_dropout_is_pytorchs(transform: str | None) -> None:
    x = (X, V, X)

    def attend(*x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return F.scaled_dot_product_attention(*x, dropout_p=0.5)

    def run() -> list[Tensor]:
        if transform is None:
            return [attend(*x)]
        if transform == "jvp":
            return tensors(jvp(attend, x, x))
        return tensors(jvp(grad(lambda *x: attend(*x).square().sum(), (0, 1, 2)), x, x))

    with sdpa_kernel(SDPBackend.MATH):
        expected = run()
    with ff.replace_ops():
        actual = run()
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("weight_dtype", [torch.float32, None])
def test_norms_keep_pytorchs_dtypes(dtype: torch.dtype, weight_dtype: torch.dtype | None) -> None:
    x = (3 + 2 * draw(4, 6, 5)).to(dtype)

    def calls(x: Tensor) -> list[Tensor]:
        w5 = None if weight_dtype is None else torch.full((5,), 1.5, dtype=weight_dtype)
        w6 = None if weight_dtype is None else torch.full((6,), 1.5, dtype=weight_dtype)
        return [
            F.layer_norm(x, (5,), w5, w5),
            *torch.native_layer_norm(x, (5,), w5, w5, 1e-5),
            F.batch_norm(x, None, None, w6, w6, training=True),
            *torch.native_batch_norm(x, w6, w6, None, None, True, 0.1, 1e-5),
            F.instance_norm(x, None, None, w6, w6),
        ]

    expected = calls(x)
    with ff.replace_ops(), forward_ad.dual_level():
        actual = calls(x)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert_close(a, e.reshape(a.shape), 4 * torch.finfo(a.dtype).eps)


def test_batch_norm_updates_its_statistics() -> None:
    ours, theirs = (nn.BatchNorm1d(3).double() for _ in range(2))
    x = draw(4, 3)
    theirs(x)
    with ff.replace_ops(), forward_ad.dual_level():
        ours(forward_ad.make_dual(x, x))
    for a, e in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, e)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: F.layer_norm(x, (4,)), "normalized_shape"),
        (lambda x: F.layer_norm(x, (8,), x[0, 0, 0, :4]), "weight"),
        (lambda x: F.batch_norm(x[:1, :, 0, 0], None, None, training=True), "more than 1 value per channel"),
    ],
)
def test_bad_arguments_get_pytorchs_errors(call: Call, message: str) -> None:
    with ff.replace_ops(), pytest.raises((RuntimeError, ValueError), match=message):
        jvp(call, (X,), (V,))
