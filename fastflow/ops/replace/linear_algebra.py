"""Replacements for linear algebra whose tangents, or gradients through them, PyTorch gets wrong.

PyTorch's det, slogdet and solve keep the LU factors of the forward as constants of the tangent; here they are
differentiated. The other replacements are written in terms of ops that are right.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .state import tangent_possible

Original = Callable[..., Any]
_RETURN_TYPES: Any = torch.return_types  # its stubs lack some


def det(original: Original, *args: Any, **options: Any) -> Tensor:
    """Replace ``torch.linalg.det``, ``torch.det`` and the method."""
    matrix = _only_matrix(args, options)
    if matrix is None:
        return original(*args, **options)
    diagonal, sign = _lu_diagonal(matrix)
    return sign * diagonal.prod(-1)


def slogdet(original: Original, *args: Any, **options: Any) -> Any:
    """Replace ``torch.linalg.slogdet``, ``torch.slogdet`` and the method."""
    matrix = _only_matrix(args, options)
    if matrix is None:
        return original(*args, **options)
    diagonal, sign = _lu_diagonal(matrix)
    return _RETURN_TYPES.linalg_slogdet((sign * diagonal.sgn().prod(-1), diagonal.abs().log().sum(-1)))


def logdet(original: Original, *args: Any, **options: Any) -> Tensor:
    """Replace ``torch.logdet`` and the method."""
    matrix = _only_matrix(args, options)
    if matrix is None or matrix.is_complex():
        return original(*args, **options)
    sign, logabsdet = slogdet(original, matrix)
    return torch.where(sign < 0, math.nan, logabsdet)


def solve(original: Original, A: Tensor, B: Tensor, *, left: bool = True, out: Any = None) -> Tensor:
    """Replace ``torch.linalg.solve``."""
    if out is not None or not _replaceable(A):
        return original(A, B, left=left, out=out)
    return _solve(A, B, left, torch.linalg.lu_factor)[0]


def solve_ex(
    original: Original,
    A: Tensor,
    B: Tensor,
    *,
    left: bool = True,
    check_errors: bool = False,
    out: Any = None,
) -> Any:
    """Replace ``torch.linalg.solve_ex``."""
    if out is not None or not _replaceable(A):
        return original(A, B, left=left, check_errors=check_errors, out=out)
    factor = torch.linalg.lu_factor if check_errors else torch.linalg.lu_factor_ex
    result, info = _solve(A, B, left, factor)
    return _RETURN_TYPES.linalg_solve_ex((result, info))


def tensorsolve(original: Original, A: Tensor, B: Tensor, dims: Any = None, *, out: Any = None) -> Tensor:
    """Replace ``torch.linalg.tensorsolve``."""
    if out is not None or not _replaceable(A):
        return original(A, B, dims, out=out)
    if dims is not None:
        A = A.movedim(tuple(dims), tuple(range(A.ndim - len(dims), A.ndim)))
    shape = A.shape[B.ndim :]
    return torch.linalg.solve(A.reshape(-1, math.prod(shape)), B.flatten()).reshape(shape)


def cholesky_inverse(original: Original, input: Tensor, upper: bool = False, *, out: Any = None) -> Tensor:
    """Replace ``torch.cholesky_inverse`` and the method."""
    if out is not None or not _replaceable(input):
        return original(input, upper, **({} if out is None else {"out": out}))
    eye = torch.eye(input.shape[-1], dtype=input.dtype, device=input.device)
    return torch.cholesky_solve(eye.expand_as(input), input, upper)


def triangular_solve(
    original: Original,
    b: Tensor,
    A: Tensor,
    upper: bool = True,
    transpose: bool = False,
    unitriangular: bool = False,
    *,
    out: Any = None,
) -> Any:
    """Replace ``torch.triangular_solve`` and the method."""
    if out is not None or not _replaceable(b):
        return original(b, A, upper, transpose, unitriangular, **({} if out is None else {"out": out}))
    matrix = A.mT if transpose else A
    solution = torch.linalg.solve_triangular(matrix, b, upper=upper != transpose, unitriangular=unitriangular)
    return _RETURN_TYPES.triangular_solve((solution, A.clone()))


def householder_product(original: Original, input: Tensor, tau: Tensor, *, out: Any = None) -> Tensor:
    """Replace ``torch.linalg.householder_product``, ``torch.orgqr`` and the method."""
    if out is not None or not _replaceable(input):
        return original(input, tau, **({} if out is None else {"out": out}))
    num_rows, num_columns = input.shape[-2:]
    vectors = input.tril(-1) + torch.eye(num_rows, num_columns, dtype=input.dtype, device=input.device)
    result = torch.eye(num_rows, num_columns, dtype=input.dtype, device=input.device).expand_as(input)
    for i in reversed(range(tau.shape[-1])):
        v = vectors[..., i : i + 1]
        result = result - tau[..., i, None, None] * v @ (v.mH @ result)
    return result


def _solve(A: Tensor, B: Tensor, left: bool, factor: Callable[..., Any]) -> tuple[Tensor, Tensor | None]:
    lu, pivots, *info = factor(A)
    is_vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    result = torch.linalg.lu_solve(lu, pivots, B.unsqueeze(-1) if is_vector else B, left=left)
    return result.squeeze(-1) if is_vector else result, info[0] if info else pivots.new_zeros(A.shape[:-2])


def _lu_diagonal(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the diagonal of U and the sign of the permutation."""
    lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
    places = torch.arange(1, matrix.shape[-1] + 1, device=matrix.device)
    num_swaps = (pivots != places).sum(-1)
    return lu.diagonal(dim1=-2, dim2=-1), (1 - 2 * (num_swaps % 2)).to(matrix.dtype)


def _only_matrix(args: tuple[Any, ...], options: dict[str, Any]) -> Tensor | None:
    """Return the one argument of a call, or None if the original must run."""
    given = (*args, *options.values())
    return given[0] if len(given) == 1 and _replaceable(given[0]) else None


def _replaceable(x: Any) -> bool:
    return isinstance(x, Tensor) and x.ndim >= 2 and tangent_possible()
