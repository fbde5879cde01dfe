"""Ops that models contain, each as a function of float64 tensors and a point away from its kinks."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

Case = tuple[Callable[..., Any], tuple[Tensor, ...]]
_GENERATOR = torch.Generator().manual_seed(0)


def R(*shape: int) -> Tensor:  # noqa: N802
    return torch.randn(*shape, dtype=torch.float64, generator=_GENERATOR)


def _positive(*shape: int) -> Tensor:
    return 0.5 + R(*shape).abs()


def _module(module: nn.Module, *inputs: Tensor, **options: Any) -> Case:
    """A module as a function of its inputs and its parameters."""
    module = module.double()
    names, parameters = zip(*((name, p.detach()) for name, p in module.named_parameters()))

    def function(*args: Tensor) -> Any:
        own = dict(zip(names, args[len(inputs) :]))
        out = functional_call(module, own, args[: len(inputs)], options)
        return [x for x in out if isinstance(x, Tensor)] if isinstance(out, tuple) else out

    return function, (*inputs, *parameters)


def _frozen(module: nn.Module, x: Tensor) -> Case:
    """Inference: PyTorch takes a fast path if no parameter requires grad."""
    module = module.double().eval().requires_grad_(False)
    return lambda x: module(x), (x,)


def _self_attention(x: Tensor) -> Case:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double().eval().requires_grad_(False)
    return lambda x: attention(x, x, x, need_weights=False)[0], (x,)


def _spd(x: Tensor) -> Tensor:
    return x @ x.mT + 3 * torch.eye(x.shape[-1], dtype=x.dtype)


def _lower(x: Tensor) -> Tensor:
    return x.tril() + 3 * torch.eye(x.shape[-1], dtype=x.dtype)


MEAN, VAR, COUNTS = R(4), _positive(4), _positive(3, 4)
CLASSES = torch.tensor([0, 2, 1])
INDEX = torch.tensor([[0, 1, 0], [2, 1, 0], [1, 1, 2], [0, 0, 0]])
BAGS, OFFSETS = torch.tensor([0, 2, 1, 2]), torch.tensor([0, 2])
_UNPOOL = F.max_pool2d(R(1, 2, 4, 4), 2, return_indices=True)[1]
_FRACTION = torch.full((1, 1, 2), 0.3, dtype=torch.float64)

NORMS: dict[str, Case] = {
    "F.layer_norm": (lambda x, w, b: F.layer_norm(x, (5,), w, b), (R(2, 3, 5), R(5), R(5))),
    "F.layer_norm, two dimensions": (lambda x, w: F.layer_norm(x, (3, 5), w), (R(2, 3, 5), R(3, 5))),
    "F.layer_norm, no weight": (lambda x: F.layer_norm(x, (5,)), (R(2, 3, 5),)),
    "torch.native_layer_norm": (lambda x, w, b: torch.native_layer_norm(x, (5,), w, b, 1e-5), (R(3, 5), R(5), R(5))),
    "F.group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), (R(2, 4, 3), R(4), R(4))),
    "torch.native_group_norm": (
        lambda x, w, b: torch.native_group_norm(x, w, b, 2, 4, 3, 2, 1e-5)[0],
        (R(2, 4, 3), R(4), R(4)),
    ),
    "F.rms_norm": (lambda x, w: F.rms_norm(x, (5,), w), (R(2, 3, 5), R(5))),
    "torch._fused_rms_norm": (lambda x, w: torch._fused_rms_norm(x, (5,), w, 1e-5)[0], (R(2, 3, 5), R(5))),
    "F.batch_norm, eval": (lambda x, w, b: F.batch_norm(x, MEAN, VAR, w, b), (R(3, 4, 2), R(4), R(4))),
    "F.batch_norm, train": (
        lambda x, w, b: F.batch_norm(x, MEAN.clone(), VAR.clone(), w, b, True),
        (R(3, 4, 2), R(4), R(4)),
    ),
    "F.batch_norm, no statistics kept": (lambda x: F.batch_norm(x, None, None, training=True), (R(3, 4, 2),)),
    "torch.native_batch_norm, train": (
        lambda x, w, b: torch.native_batch_norm(x, w, b, None, None, True, 0.1, 1e-5),
        (R(3, 4, 2), R(4), R(4)),
    ),
    "F.instance_norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), (R(2, 4, 5), R(4), R(4))),
    "F.instance_norm, running statistics": (
        lambda x, w, b: F.instance_norm(x, MEAN, VAR, w, b, use_input_stats=False),
        (R(2, 4, 5), R(4), R(4)),
    ),
    "nn.SyncBatchNorm, one process": _module(nn.SyncBatchNorm(4), R(3, 4, 2)),
    "F.local_response_norm": (lambda x: F.local_response_norm(x, 2), (R(1, 4, 3, 3),)),
    "F.normalize": (lambda x: F.normalize(x, dim=-1), (R(3, 4),)),
    "weight_norm": _module(parametrizations.weight_norm(nn.Linear(4, 3)), R(2, 4)),
    "spectral_norm, eval": _module(parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), R(2, 4)),
    "orthogonal, matrix_exp": _module(parametrizations.orthogonal(nn.Linear(4, 4)), R(2, 4)),
    "orthogonal, cayley": _module(parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="cayley"), R(2, 4)),
    "torch.renorm": (lambda x: torch.renorm(x, 2, 0, 0.5), (R(3, 4),)),
}

ATTENTION: dict[str, Case] = {
    "F.scaled_dot_product_attention": (F.scaled_dot_product_attention, (R(1, 2, 3, 4), R(1, 2, 3, 4), R(1, 2, 3, 4))),
    "F.scaled_dot_product_attention, dropout": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.3),
        (R(1, 2, 3, 4), R(1, 2, 3, 4), R(1, 2, 3, 4)),
    ),
    "nn.MultiheadAttention": _module(nn.MultiheadAttention(8, 2), R(3, 2, 8), R(3, 2, 8), R(3, 2, 8)),
    "nn.MultiheadAttention, need_weights=False": _module(
        nn.MultiheadAttention(8, 2), R(3, 2, 8), R(3, 2, 8), R(3, 2, 8), need_weights=False
    ),
    "nn.MultiheadAttention, frozen": _self_attention(R(2, 3, 8)),
    "nn.TransformerEncoderLayer": _module(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), R(2, 3, 8)),
    "nn.TransformerEncoderLayer, frozen": _frozen(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), R(2, 3, 8)),
    "nn.TransformerDecoderLayer": _module(nn.TransformerDecoderLayer(8, 2, 16, 0.0), R(3, 2, 8), R(4, 2, 8)),
}

LOSSES: dict[str, Case] = {
    "F.cross_entropy": (lambda x: F.cross_entropy(x, CLASSES, label_smoothing=0.1), (R(3, 4),)),
    "F.cross_entropy, probabilities": (lambda x, p: F.cross_entropy(x, p.softmax(-1)), (R(3, 4), R(3, 4))),
    "F.cross_entropy, class weights": (lambda x, w: F.cross_entropy(x, CLASSES, w), (R(3, 4), _positive(4))),
    "F.nll_loss, class weights": (lambda x, w: F.nll_loss(x, CLASSES, w), (R(3, 4), _positive(4))),
    "F.nll_loss": (lambda x: F.nll_loss(x, CLASSES), (R(3, 4),)),
    "F.kl_div": (lambda x, y: F.kl_div(x, y, reduction="sum"), (R(3, 4), _positive(3, 4))),
    "F.mse_loss": (F.mse_loss, (R(3, 4), R(3, 4))),
    "F.mse_loss, sum": (lambda x, y: F.mse_loss(x, y, reduction="sum"), (R(3, 4), R(3, 4))),
    "F.l1_loss": (F.l1_loss, (R(3, 4), R(3, 4))),
    "F.smooth_l1_loss": (F.smooth_l1_loss, (R(3, 4), R(3, 4))),
    "F.huber_loss": (F.huber_loss, (R(3, 4), R(3, 4))),
    "F.binary_cross_entropy": (lambda x, y: F.binary_cross_entropy(x.sigmoid(), y.sigmoid()), (R(3, 4), R(3, 4))),
    "F.binary_cross_entropy_with_logits": (
        lambda x, y: F.binary_cross_entropy_with_logits(x, y.sigmoid()),
        (R(3, 4), R(3, 4)),
    ),
    "F.gaussian_nll_loss": (lambda x, y, v: F.gaussian_nll_loss(x, y, v), (R(3, 4), R(3, 4), _positive(3, 4))),
    "F.poisson_nll_loss": (lambda x: F.poisson_nll_loss(x, COUNTS), (R(3, 4),)),
    "F.cosine_similarity": (F.cosine_similarity, (R(3, 4), R(3, 4))),
    "F.cosine_embedding_loss": (
        lambda x, y: F.cosine_embedding_loss(x, y, torch.tensor([1, -1, 1]), margin=-1),
        (R(3, 4), R(3, 4)),
    ),
    "F.pairwise_distance": (F.pairwise_distance, (R(3, 4), R(3, 4))),
    "F.triplet_margin_loss": (F.triplet_margin_loss, (R(3, 4), R(3, 4), R(3, 4))),
    "F.soft_margin_loss": (lambda x: F.soft_margin_loss(x, CLASSES.sign() * 2 - 1.0), (R(3),)),
    "F.multi_margin_loss": (lambda x: F.multi_margin_loss(x, CLASSES), (R(3, 4),)),
    "F.ctc_loss": (
        lambda x: F.ctc_loss(x.log_softmax(-1), torch.tensor([[1, 2], [1, 1]]), [5, 5], [2, 2]),
        (R(5, 2, 3),),
    ),
    "torch.cdist": (torch.cdist, (R(3, 4), R(2, 4))),
    "F.pdist": (F.pdist, (R(3, 4),)),
}
if hasattr(F, "linear_cross_entropy"):  # since 2.13
    LOSSES["F.linear_cross_entropy"] = (lambda x, w: F.linear_cross_entropy(x, w, CLASSES), (R(3, 4), R(5, 4)))
    LOSSES["F.linear_cross_entropy, chunked"] = (
        lambda x, w: F.linear_cross_entropy(x, w, CLASSES, options=nn.LinearCrossEntropyOptions(batch_chunk_size=2)),
        (R(3, 4), R(5, 4)),
    )

_ACTIVATIONS = {
    name: getattr(F, name)
    for name in (
        "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign",
        "hardtanh", "hardswish", "hardsigmoid", "logsigmoid", "tanhshrink", "softshrink", "hardshrink", "sigmoid",
        "tanh", "glu",
    )
}  # fmt: skip

POINTWISE: dict[str, Case] = {
    **{f"F.{name}": (function, (R(3, 4),)) for name, function in _ACTIVATIONS.items()},
    "F.gelu, tanh": (lambda x: F.gelu(x, approximate="tanh"), (R(3, 4),)),
    "F.prelu": (F.prelu, (R(3, 4), _positive(4))),
    "F.rrelu, eval": (F.rrelu, (R(3, 4),)),
    "F.rrelu, train": (lambda x: F.rrelu(x, training=True), (R(3, 4),)),
    "F.softmax": (lambda x: F.softmax(x, -1), (R(3, 4),)),
    "F.log_softmax": (lambda x: F.log_softmax(x, -1), (R(3, 4),)),
    "F.softmin": (lambda x: F.softmin(x, -1), (R(3, 4),)),
    "F.gumbel_softmax": (F.gumbel_softmax, (R(3, 4),)),
    "torch._masked_softmax": (lambda x: torch._masked_softmax(x, x.detach() > 9, 1), (R(3, 4),)),
    "F.dropout": (lambda x: F.dropout(x, 0.4), (R(3, 4),)),
    "F.dropout, eval": (lambda x: F.dropout(x, 0.4, training=False), (R(3, 4),)),
    "F.alpha_dropout": (lambda x: F.alpha_dropout(x, 0.4, True), (R(3, 4),)),
    "torch.native_dropout": (lambda x: torch.native_dropout(x, 0.4, True)[0], (R(3, 4),)),
    "torch.logsumexp": (lambda x: torch.logsumexp(x, -1), (R(3, 4),)),
    "torch.cumsum": (lambda x: torch.cumsum(x, 0) ** 2, (R(3, 4),)),
    "torch.cumprod": (lambda x: torch.cumprod(x, 0), (R(3, 4),)),
    "torch.logcumsumexp": (lambda x: torch.logcumsumexp(x, 0), (R(3, 4),)),
    "torch.prod": (lambda x: torch.prod(x, 0), (R(3, 4),)),
    "torch.std": (lambda x: torch.std(x, -1), (R(3, 4),)),
    "torch.var_mean": (lambda x: torch.var_mean(x, -1), (R(3, 4),)),
    "torch.clamp": (lambda x: torch.clamp(x, -0.5, 0.5) ** 2, (R(3, 4),)),
    "torch.where": (lambda x, y: torch.where(x > y, x * y, y * y), (R(3, 4), R(3, 4))),
    "torch.lerp": (torch.lerp, (R(3, 4), R(3, 4), R(3, 4))),
    "torch.addcmul": (torch.addcmul, (R(3, 4), R(3, 4), R(3, 4))),
    "torch.addcdiv": (torch.addcdiv, (R(3, 4), R(3, 4), _positive(3, 4))),
    "torch.pow": (torch.pow, (_positive(3, 4), R(3, 4))),
    "torch.atan2": (torch.atan2, (R(3, 4), R(3, 4))),
    "torch.erf": (torch.erf, (R(3, 4),)),
    "torch.sort": (lambda x: torch.sort(x, -1)[0] ** 2, (R(3, 4),)),
    "torch.topk": (lambda x: torch.topk(x, 2)[0] ** 2, (R(3, 4),)),
    "torch.maximum": (lambda x, y: torch.maximum(x, y) ** 2, (R(3, 4), R(3, 4))),
}

_SPATIAL = {
    f"F.interpolate, {mode}, {n}d": (
        lambda x, mode=mode, options=options: F.interpolate(x, scale_factor=2, mode=mode, **options) ** 2,
        (R(1, 2, *(3,) * n),),
    )
    for mode, n, options in (
        ("nearest", 1, {}), ("nearest", 2, {}), ("nearest", 3, {}), ("nearest-exact", 2, {}), ("area", 2, {}),
        ("linear", 1, {}), ("bilinear", 2, {}), ("bilinear", 2, {"antialias": True}), ("bicubic", 2, {}),
        ("bicubic", 2, {"antialias": True}), ("trilinear", 3, {"align_corners": True}),
    )
}  # fmt: skip
_PADS = {
    f"F.pad, {mode}, {n}d": (lambda x, mode=mode, n=n: F.pad(x, (1, 1) * n, mode) ** 2, (R(1, 2, *(3,) * n),))
    for mode in ("constant", "reflect", "replicate", "circular")
    for n in (1, 2, 3)
}
_POOLS = {
    f"F.{name}": (lambda x, name=name, argument=argument: getattr(F, name)(x, argument) ** 2, (R(1, 2, *(4,) * n),))
    for name, n, argument in (
        ("avg_pool1d", 1, 2), ("avg_pool2d", 2, 2), ("avg_pool3d", 3, 2), ("max_pool1d", 1, 2), ("max_pool2d", 2, 2),
        ("max_pool3d", 3, 2), ("adaptive_avg_pool1d", 1, 2), ("adaptive_avg_pool2d", 2, 2),
        ("adaptive_avg_pool3d", 3, 2), ("adaptive_max_pool1d", 1, 2),
        ("adaptive_max_pool2d", 2, 2), ("adaptive_max_pool3d", 3, 2),
    )
}  # fmt: skip

SPATIAL: dict[str, Case] = {
    **_SPATIAL,
    **_PADS,
    **_POOLS,
    "F.lp_pool2d": (lambda x: F.lp_pool2d(x, 3, 2), (_positive(1, 2, 4, 4),)),
    "F.fractional_max_pool2d": (
        lambda x: F.fractional_max_pool2d(x, 2, output_size=2, _random_samples=_FRACTION) ** 2,
        (R(1, 1, 5, 5),),
    ),
    "F.max_unpool2d": (lambda x: F.max_unpool2d(x, _UNPOOL, 2) ** 2, (R(1, 2, 2, 2),)),
    "F.conv1d": (lambda x, w, b: F.conv1d(x, w, b, padding=1), (R(2, 2, 4), R(3, 2, 3), R(3))),
    "F.conv2d": (lambda x, w, b: F.conv2d(x, w, b, stride=2, groups=2), (R(2, 2, 5, 5), R(4, 1, 3, 3), R(4))),
    "F.conv3d": (F.conv3d, (R(1, 2, 3, 3, 3), R(3, 2, 2, 2, 2), R(3))),
    "F.conv_transpose1d": (F.conv_transpose1d, (R(2, 2, 4), R(2, 3, 3), R(3))),
    "F.conv_transpose2d": (F.conv_transpose2d, (R(2, 2, 4, 4), R(2, 3, 3, 3), R(3))),
    "F.conv_transpose3d": (F.conv_transpose3d, (R(1, 2, 3, 3, 3), R(2, 3, 2, 2, 2), R(3))),
    "F.grid_sample": (lambda x, g: F.grid_sample(x, 0.3 * g, align_corners=False), (R(1, 2, 4, 4), R(1, 3, 3, 2))),
    "F.affine_grid": (lambda x: F.affine_grid(x, [2, 1, 3, 3], align_corners=False) ** 2, (R(2, 2, 3),)),
    "F.pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2) ** 2, (R(1, 4, 2, 2),)),
    "F.pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2) ** 2, (R(1, 1, 4, 4),)),
    "F.unfold": (lambda x: F.unfold(x, 2) ** 2, (R(1, 2, 3, 3),)),
    "F.fold": (lambda x: F.fold(x, (3, 3), 2) ** 2, (R(1, 8, 4),)),
}

LINEAR: dict[str, Case] = {
    "F.linear": (F.linear, (R(3, 4), R(2, 4), R(2))),
    "F.bilinear": (F.bilinear, (R(3, 4), R(3, 2), R(3, 4, 2), R(3))),
    "torch.addmm": (torch.addmm, (R(3, 2), R(3, 4), R(4, 2))),
    "torch.baddbmm": (torch.baddbmm, (R(2, 3, 2), R(2, 3, 4), R(2, 4, 2))),
    "torch._addmm_activation": (torch._addmm_activation, (R(2), R(3, 4), R(4, 2))),
    "torch.einsum": (lambda x, y: torch.einsum("bij,bjk->ik", x, y), (R(2, 3, 4), R(2, 4, 2))),
    "F.embedding": (lambda w: F.embedding(BAGS, w) ** 2, (R(3, 4),)),
    "F.embedding_bag": (lambda w: F.embedding_bag(BAGS, w, OFFSETS) ** 2, (R(3, 4),)),
    "nn.LSTMCell": _module(nn.LSTMCell(3, 4), R(2, 3)),
    "nn.GRUCell": _module(nn.GRUCell(3, 4), R(2, 3)),
    "nn.LSTM": _module(nn.LSTM(3, 4), R(3, 2, 3)),
    "nn.GRU": _module(nn.GRU(3, 4), R(3, 2, 3)),
    "torch.fft.rfft": (lambda x: torch.fft.irfft(torch.fft.rfft(x) ** 2), (R(3, 4),)),
    "torch.gather": (lambda x: torch.gather(x, 0, INDEX) ** 2, (R(4, 3),)),
    "torch.scatter": (lambda x, y: torch.scatter(x, 0, torch.tensor([[1, 0, 2]]), y) ** 2, (R(4, 3), R(1, 3))),
    "torch.scatter_add": (lambda x, y: torch.scatter_add(x, 0, INDEX, y) ** 2, (R(4, 3), R(4, 3))),
    **{
        f"torch.scatter_reduce, {how}": (
            lambda x, y, how=how: torch.scatter_reduce(x, 0, INDEX, y, how) ** 2,
            (R(4, 3), R(4, 3)),
        )
        for how in ("sum", "mean", "amax", "prod")
    },
    "torch.index_add": (lambda x, y: torch.index_add(x, 0, BAGS, y) ** 2, (R(4, 3), R(4, 3))),
    "torch.index_copy": (lambda x, y: torch.index_copy(x, 0, CLASSES, y) ** 2, (R(4, 3), R(3, 3))),
    "torch.index_select": (lambda x: x.index_select(0, BAGS) ** 2, (R(4, 3),)),
    "torch.index_put": (lambda x, y: x.index_put((CLASSES,), y, accumulate=True) ** 2, (R(4, 3), R(3, 3))),
    "torch.linalg.vector_norm": (lambda x: torch.linalg.vector_norm(x, dim=-1), (R(3, 4),)),
    "torch.linalg.matrix_norm": (torch.linalg.matrix_norm, (R(3, 4),)),
    "torch.linalg.matrix_norm, 2": (lambda x: torch.linalg.matrix_norm(x, 2), (R(3, 4),)),
    "torch.linalg.det": (torch.linalg.det, (R(4, 4),)),
    "torch.linalg.slogdet": (lambda x: torch.linalg.slogdet(x)[1], (R(2, 4, 4),)),
    "torch.logdet": (lambda x: torch.logdet(_spd(x)), (R(4, 4),)),
    "torch.linalg.solve": (torch.linalg.solve, (R(4, 4), R(4, 2))),
    "torch.linalg.solve, vector": (lambda a, b: torch.linalg.solve(a, b), (R(2, 4, 4), R(2, 4))),
    "torch.linalg.solve, from the right": (lambda a, b: torch.linalg.solve(a, b, left=False), (R(4, 4), R(2, 4))),
    "torch.linalg.solve_ex": (lambda a, b: torch.linalg.solve_ex(a, b)[0], (R(4, 4), R(4, 2))),
    "torch.linalg.tensorsolve": (torch.linalg.tensorsolve, (R(2, 2, 4), R(2, 2))),
    "torch.linalg.inv": (torch.linalg.inv, (R(4, 4),)),
    "torch.linalg.pinv": (torch.linalg.pinv, (R(4, 3),)),
    "torch.linalg.lu": (lambda x: torch.linalg.lu(x)[1:], (R(4, 4),)),
    "torch.linalg.lu_solve": (lambda a, b: torch.linalg.lu_solve(*torch.linalg.lu_factor(a), b), (R(4, 4), R(4, 2))),
    "torch.linalg.lstsq": (lambda a, b: torch.linalg.lstsq(a, b)[0], (R(4, 3), R(4, 2))),
    "torch.linalg.cholesky": (lambda x: torch.linalg.cholesky(_spd(x)), (R(4, 4),)),
    "torch.cholesky_solve": (lambda x, b: torch.cholesky_solve(b, _lower(x)), (R(4, 4), R(4, 2))),
    "torch.cholesky_inverse": (lambda x: torch.cholesky_inverse(_lower(x)), (R(4, 4),)),
    "torch.linalg.solve_triangular": (
        lambda a, b: torch.linalg.solve_triangular(_lower(a), b, upper=False),
        (R(4, 4), R(4, 2)),
    ),
    "torch.triangular_solve": (lambda b, a: torch.triangular_solve(b, _lower(a).mT)[0], (R(4, 2), R(4, 4))),
    "torch.linalg.eigh": (lambda x: torch.linalg.eigh(_spd(x))[0], (R(4, 4),)),
    "torch.linalg.svdvals": (torch.linalg.svdvals, (R(4, 3),)),
    "torch.linalg.qr": (torch.linalg.qr, (R(4, 3),)),
    "torch.linalg.householder_product": (torch.linalg.householder_product, (R(4, 3), R(3))),
    "torch.linalg.matrix_exp": (torch.linalg.matrix_exp, (R(4, 4),)),
    "torch.linalg.matrix_power": (lambda x: torch.linalg.matrix_power(x, -2), (R(4, 4),)),
    "torch.linalg.cross": (torch.linalg.cross, (R(4, 3), R(4, 3))),
}

OPS: dict[str, Case] = {**NORMS, **ATTENTION, **LOSSES, **POINTWISE, **SPATIAL, **LINEAR}
