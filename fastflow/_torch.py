"""Every private PyTorch call of the package, each with the reason why no public one will do.

``tests/test_torch.py`` checks them one by one, so that a PyTorch upgrade fails there first. ATen's private operators
are the subject of ``kernels/attention/aten.py`` and are called there.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from inspect import getattr_static
from typing import Any, TypeVar

import torch
from torch import Tensor, overrides
from torch._C import _functorch
from torch._functorch import eager_transforms
from torch._functorch.autograd_function import VmapInfo
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad
from torch.utils import checkpoint

F = TypeVar("F", bound=Callable[..., Any])
_MOST_LEVELS = 8
_native_layer_norm, _linear = torch.native_layer_norm, torch._C._nn.linear  # before anything can replace them
_TRACING = {
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.functional_tensor.FunctionalTensor",
    "torch.distributed._functional_collectives.AsyncCollectiveTensor",
}


def constant_when_traced(function: F) -> F:
    """Let torch.compile call this function while it traces and treat the result as a constant.

    ``torch.compiler.assume_constant_result`` sets the same attribute, but imports torch._dynamo, which is slow.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_traced
def inside_transform() -> bool:
    """Return True inside any torch.func transform (vmap, grad, jvp, ...). There is no public query."""
    return _functorch.peek_interpreter_stack() is not None


@constant_when_traced
def transforms() -> tuple[str, ...]:
    """Return the active torch.func transforms ("Vmap", "Grad", "Jvp", ...), outermost first."""
    return tuple(interpreter.key().name for interpreter in _functorch.get_interpreter_stack() or ())


def holds_without_guard(condition: bool | torch.SymBool) -> bool:
    """Return True if the condition is true; of symbolic sizes, if it is true for all of them.

    A branch on symbolic sizes would tie the traced program to one side. There is no public way to ask without one.
    """
    if not torch.compiler.is_compiling() and isinstance(condition, bool):
        return condition
    if isinstance(condition, Tensor):  # torch.jit.trace records sizes as tensors
        return False
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy

    return statically_known_true(condition)


@constant_when_traced
def traced_by_autograd() -> bool:
    """Return True while AOTAutograd traces a compiled graph; ``torch.compiler.is_compiling`` is False there."""
    keys = (torch._C._TorchDispatchModeKey.FUNCTIONAL, torch._C._TorchDispatchModeKey.PROXY)
    return any(torch._C._get_dispatch_mode(key) is not None for key in keys)


@constant_when_traced
def forward_mode_active() -> bool:
    """Return True inside ``forward_ad.dual_level`` or a jvp. There is no public query."""
    return forward_ad._current_level >= 0


def inside_jvp() -> bool:
    """Return True inside ``torch.func.jvp``, and False inside a bare ``forward_ad.dual_level``."""
    return eager_transforms.JVP_NESTING > 0


def unwrapped(x: Tensor) -> Tensor:
    """Return the values below all torch.func transforms, detached. There is no public way to read them."""
    return _innermost(x).detach()


def below_transforms(x: Tensor) -> Tensor:
    """Return the tensor that torch.func has wrapped, or x itself. There is no public way to reach it."""
    if torch.compiler.is_compiling() or not inside_transform():
        return x
    return _innermost(x)


def requires_grad_at_any_level(x: Tensor) -> bool:
    """Return True if x requires grad at any level of nested torch.func transforms."""
    while not x.requires_grad and _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x.requires_grad


def requires_grad_at_recording_level(x: Tensor) -> bool:
    """Return True if x requires grad at the level of the innermost torch.func grad or vjp, else on the tape."""
    if torch.compiler.is_compiling():
        return x.requires_grad
    stack = _functorch.get_interpreter_stack() or ()
    level = max((interpreter.level() for interpreter in stack if interpreter.key().name == "Grad"), default=0)
    while _level(x) > level:
        x = _functorch.get_unwrapped(x)
    return _level(x) == level and x.requires_grad


def has_tangent_at_any_level(x: Tensor) -> bool:
    """Return True if forward-mode AD carries a tangent on x at any level of nested torch.func transforms.

    Under torch.compile, which cannot trace the search, at the innermost level only.
    """
    if torch.compiler.is_compiling() or not inside_transform():
        return forward_ad.unpack_dual(x).tangent is not None
    interpreter = retrieve_current_functorch_interpreter()
    if interpreter.key().name == "Jvp" and forward_ad.unpack_dual(x).tangent is not None:
        return True
    if _functorch.maybe_get_level(x) == interpreter.level():
        x = _functorch.get_unwrapped(x)
    with interpreter.lower():
        return has_tangent_at_any_level(x)


def innermost_is_jvp() -> bool:
    """Return True if the innermost torch.func transform is a jvp."""
    innermost = _functorch.peek_interpreter_stack()
    return innermost is not None and innermost.key() == _functorch.TransformType.Jvp


def unpacked(x: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the primal and the tangent, without the cost of ``forward_ad.unpack_dual``.

    In eager mode inside a jvp a tensor that torch.func has not wrapped has no tangent.
    """
    if torch.compiler.is_compiling():
        return (None, None) if x is None else tuple(forward_ad.unpack_dual(x))
    if x is None or not _functorch.is_functorch_wrapped_tensor(x):
        return x, None
    return torch._VF._unpack_dual(x, level=forward_ad._current_level)


def dual(primal: Tensor, tangent: Tensor) -> Tensor:
    """Return ``forward_ad.make_dual(primal, tangent)`` without what this costs beside it."""
    if torch.compiler.is_compiling():
        return forward_ad.make_dual(primal, tangent)
    return torch._VF._make_dual(primal, tangent, level=forward_ad._current_level)


def one_level_down(function: Callable[..., Sequence[Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
    """Run ``function`` one functorch level down and wrap its results again.

    For a function whose innermost jvp is already handled: at that jvp's level every tensor would be wrapped once more.
    """

    def lowered(*args: Any) -> tuple[Tensor, ...]:
        interpreter = retrieve_current_functorch_interpreter()
        level, is_wrapped = interpreter.level(), _functorch.is_functorch_wrapped_tensor
        args = tuple(
            _functorch._unwrap_for_grad(x, level) if isinstance(x, Tensor) and is_wrapped(x) else x for x in args
        )
        with interpreter.lower():
            outputs = function(*args)
        return tuple(_functorch._wrap_for_grad(x, level) for x in outputs)

    return lowered


def through_vmap(
    function: Callable[..., Sequence[Tensor]], rule: Callable[..., Any], args: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Run ``function(*args)`` by its vmap rule, ``rule(function, info, dims, args)``, below the innermost vmap.

    This is what ``torch.func`` does with an autograd.Function, without its search for defaults and dispatch keys.
    """
    interpreter: Any = retrieve_current_functorch_interpreter()
    level = interpreter.level()
    operands, dims = [], []
    for x in unwrap_dead_wrappers(tuple(args)):
        value, dim = _functorch._unwrap_batched(x, level) if isinstance(x, Tensor) else (x, None)
        operands.append(value)
        dims.append(dim)
    with interpreter.lower():
        if all(dim is None for dim in dims):
            return tuple(function(*operands))
        info = VmapInfo(batch_size=interpreter.batch_size(), randomness=interpreter.randomness())
        results, axes = rule(function, info, tuple(dims), tuple(operands))
    return tuple(y if axis is None else _functorch._add_batch_dim(y, axis, level) for y, axis in zip(results, axes))


def apply(function: Any, *args: Any) -> Any:
    """Call ``function.apply(*args)`` on an autograd.Function with all its arguments given.

    Outside of transforms this skips default-argument binding, which costs about as much as a small matmul.
    """
    if inside_transform():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*unwrap_dead_wrappers(args))


def can_skip_dispatcher(*args: Any) -> bool:
    """Return True if the dispatcher would only pass these tensors on.

    That is, no transform or dispatch mode is active, nothing is traced, and every tensor has values and the dispatch
    keys of a fresh one: it is no subclass and no zero tensor without memory.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or inside_transform():
        return False
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace would record this call's sizes
        return False
    keys_of, fresh = torch._C._dispatch_keys, None
    for x in args:
        if isinstance(x, Tensor):
            fresh = fresh or _fresh_keys(x.device.type)
            if keys_of(x) != fresh or x.is_meta:
                return False
    return True


@functools.cache
def is_transparent(kind: type) -> bool:
    """Return True if PyTorch traces with this class of tensors, or if it changes nothing of Tensor or Parameter.

    The hooks of a class are public, but not what they are by default; importing the classes of tracing takes time.
    """
    if any(f"{base.__module__}.{base.__qualname__}" in _TRACING for base in kind.__mro__):
        return True
    return _hooks(kind) in (_hooks(Tensor), _hooks(torch.nn.Parameter))


def own_attention(*args: Any, **kwargs: Any) -> Tensor:
    """Call PyTorch's scaled_dot_product_attention, also while ``torch.nn.functional`` holds a replacement."""
    return torch._C._nn.scaled_dot_product_attention(*args, **kwargs)


def native_layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Call PyTorch's, also while ``torch`` holds a replacement. Only private API skips the mode that would call it."""
    with torch._C.DisableTorchFunction():
        return _native_layer_norm(x, shape, weight, bias, eps)


def builtin_functions() -> Any:
    """Return the module whose functions ``torch.nn.functional`` calls, or holds under its own names."""
    return torch._C._nn


def own_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Call PyTorch's linear, also while ``torch._C._nn`` holds a replacement."""
    return _linear(x, weight, bias)


def unviewed(x: Tensor) -> Tensor:
    """Return x as no view, which an autograd.Function must return for its results to be changed in place."""
    return x.data if x._is_view() else x


def is_batched_grad(x: Tensor) -> bool:
    """Return True inside the backward pass of ``autograd.grad(is_grads_batched=True)`` for what it maps."""
    return _functorch.is_legacy_batchedtensor(x)


def unbatched_grad(x: Tensor) -> tuple[Tensor, int | None]:
    """Return a batched cotangent with the mapped axis in front, and the level that maps it; (x, None) for any other."""
    if not is_batched_grad(x):
        return x, None
    for level in range(1, _MOST_LEVELS):
        values = torch._remove_batch_dim(x, level, 1, 0)  # expands x if this level does not map it
        if not is_batched_grad(values):
            return values, level
    raise NotImplementedError("is_grads_batched=True inside is_grads_batched=True: use torch.func.vmap for one of them")


def batched_grad(x: Tensor, level: int) -> Tensor:
    """Undo :func:`unbatched_grad`."""
    return torch._add_batch_dim(x, 0, level)


def weight_norm_owners() -> tuple[Any, ...]:
    """Return the modules that hold ``_weight_norm``, which ``nn.utils.weight_norm`` imports by name."""
    return torch, importlib.import_module("torch.nn.utils.weight_norm")


def push_function_mode_below(mode: overrides.TorchFunctionMode) -> None:
    """Put mode at the bottom of this thread's stack of modes; ``with mode`` would require leaving in reverse order."""
    stack = _take_function_modes()
    for each in [mode, *stack]:
        overrides._push_mode(each)


def remove_function_mode(mode: overrides.TorchFunctionMode) -> None:
    """Remove mode from this thread's stack of modes, wherever it is."""
    for each in _take_function_modes():
        if each is not mode:
            overrides._push_mode(each)


def checkpoint_places() -> dict[str, tuple[Any, str]]:
    """Return where ``torch.utils.checkpoint`` keeps the functions that it looks up at each call.

    generator: of the non-reentrant form; takes the function to recompute first. Forward and backward: of the reentrant
    form's autograd.Function; forward takes that function second. Hook: the context in which the non-reentrant form
    recomputes. There is no public way to reach a recomputation inside a model.
    """
    return {
        "generator": (checkpoint, "_checkpoint_without_reentrant_generator"),
        "forward": (checkpoint.CheckpointFunction, "forward"),
        "backward": (checkpoint.CheckpointFunction, "backward"),
        "hook": (checkpoint, "_recomputation_hook"),
    }


def foreach_lerp_(starts: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move each of starts toward its end, in one launch on a GPU; ``torch.lerp`` takes one tensor at a time."""
    torch._foreach_lerp_(starts, ends, weight)


def _level(x: Tensor) -> int:
    return _functorch.maybe_get_level(x) if _functorch.is_functorch_wrapped_tensor(x) else 0


def _take_function_modes() -> list[overrides.TorchFunctionMode]:
    return [overrides._pop_mode() for _ in range(overrides._len_torch_function_stack())][::-1]


def _hooks(kind: type) -> tuple[object, object]:
    return getattr_static(kind, "__torch_function__"), getattr_static(kind, "__torch_dispatch__")


def _innermost(x: Tensor) -> Tensor:
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


@functools.cache
def _fresh_keys(device: str) -> "torch._C.DispatchKeySet":
    with torch.inference_mode(False):
        return torch._C._dispatch_keys(torch.empty(0, device=device))


def is_fake(x: Tensor) -> bool:
    """Return True for a tensor without data, of torch.compile's or FakeTensorMode's tracing."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(x, FakeTensor)


def native_layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    needed: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``torch.native_layer_norm``, by the fused kernel, which cannot be differentiated."""
    backward = torch.ops.aten.native_layer_norm_backward
    return backward(grad, x, shape, mean, rstd, weight, bias, list(needed))


def weight_norm_backward(grad: Tensor, w: Tensor, a: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of w and a for ``a w / ‖w‖`` by rows, by the fused kernel, which cannot be differentiated.

    w: ``[N, D]``; a, norm: ``[N, 1]``, norm in place of ‖w‖. The public weight norm does not take it. On a CPU the
    kernel reads a strided grad as if it were contiguous (seen in 2.13).
    """
    return torch.ops.aten._weight_norm_interface_backward(grad.contiguous(), w.contiguous(), a, norm, 0)
