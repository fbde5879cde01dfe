"""The DiT: the paper's sizes, its wiring, and its derivatives in every mode."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from fastflow.nn import DiT
from fastflow.nn.dit import PATCH_SIZES, PRESETS
from fastflow.nn.embeddings import TimeEmbedding, position_embedding
from tests.compare import assert_close

# the appendix's table of configurations, in millions, for /2, /4 and /8
PAPER_MILLIONS = {"S": (33, 33, 33), "B": (130, 130, 131), "L": (458, 458, 459), "XL": (675, 675, 676)}


def small_dit(seed: int = 0, *, randomised: bool = True, **kwargs: object) -> DiT:
    """A tiny float64 DiT; adaLN-zero leaves most of it without effect, so its zeros are filled in."""
    torch.manual_seed(seed)
    settings = {"input_size": 8, "patch_size": 4, "in_channels": 2, "hidden_size": 16, "depth": 2, "num_heads": 2}
    model = DiT(**{**settings, "num_classes": 3, **kwargs}).double()
    if randomised:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


def batch(model: DiT, num: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(num, *model.input_shape, dtype=torch.float64)
    t = torch.rand(num, dtype=torch.float64)
    return x, t, torch.arange(num) % max(1, model.num_classes)


@pytest.mark.parametrize(("size", "column"), [(s, c) for s in PRESETS for c in range(len(PATCH_SIZES))])
def test_presets_have_the_papers_parameter_counts(size: str, column: int) -> None:
    """The paper's last layer also predicts Σ, ours the velocity alone: half the outputs. Its positions, fixed as ours,
    are not in the table, but they are in the count that the authors' code prints."""
    patch = PATCH_SIZES[column]
    with torch.device("meta"):
        model = DiT.preset(f"{size}/{patch}", num_classes=1000)
    width, out = PRESETS[size]["hidden_size"], patch**2 * 4
    ours = sum(p.numel() for p in model.parameters())
    papers = ours + out * (width + 1)
    assert round(papers / 1e6) == PAPER_MILLIONS[size][column]
    if (size, patch) == ("XL", 2):
        assert papers + model.positions.numel() == 675_129_632


def test_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="'M/2'"):
        DiT.preset("M/2")


def test_untrained_model_is_exactly_zero() -> None:
    model = small_dit(randomised=False)
    x, t, y = batch(model)
    assert torch.equal(model(x, t, y), torch.zeros_like(x))


def test_every_parameter_reaches_the_output() -> None:
    model = small_dit(qk_norm=True)
    x, t, y = batch(model, num=4)
    y[-1] = model.null_class
    model(x, t, y).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert (model.label_embedding.weight.grad.abs().sum(dim=1) > 0).all()


def test_each_patch_returns_to_its_place() -> None:
    """With the gates at zero no token sees another, so a pixel of the output depends on its own patch and no other."""
    model = small_dit(randomised=False, input_size=(8, 12))
    nn.init.normal_(model.final_layer.linear.weight)
    x, t, y = batch(model, num=1)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x, t, y).sum((0, 1)), x).abs().sum((2, 3))  # H W H W
    row, column = torch.arange(8) // 4, torch.arange(12) // 4
    same = (row[:, None] == row)[:, None, :, None] & (column[:, None] == column)[None, :, None, :]
    assert (jacobian[~same] == 0).all()
    assert (jacobian[same] > 0).all()


def test_tokens_are_told_apart_by_position() -> None:
    model = small_dit()
    x, t, y = (
        torch.ones(1, *model.input_shape, dtype=torch.float64),
        torch.rand(1, dtype=torch.float64),
        torch.tensor([1]),
    )
    out = model(x, t, y)
    assert not torch.allclose(out[..., :4, :4], out[..., 4:, 4:])
    assert not torch.allclose(out[..., :4, 4:], out[..., 4:, :4])


def test_positions_are_distinct_unit_waves() -> None:
    p = position_embedding(32, 5, 7)
    assert p.shape == (35, 32)
    assert_close(p.square().sum(dim=1), torch.full((35,), 16.0), 1e-6)  # sin² + cos² = 1, 16 times
    assert torch.cdist(p, p).add(torch.eye(35)).min() > 0.1
    assert torch.equal(p[0:7, :16], p[:1, :16].expand(7, -1))  # first half: the row


def test_time_embedding_is_the_papers_at_its_time_steps() -> None:
    embedding = TimeEmbedding(8).double()
    embedding.linear1 = nn.Identity()
    embedding.linear1.weight = torch.empty(0, dtype=torch.float64)
    embedding.linear2 = nn.Identity()
    steps = torch.tensor([0.0, 1.0, 37.0, 999.0], dtype=torch.float64)
    omega = torch.tensor([10_000.0 ** (-k / 128) for k in range(128)], dtype=torch.float64)
    waves = torch.cat(((steps[:, None] * omega).cos(), (steps[:, None] * omega).sin()), dim=1)
    assert_close(embedding(steps / 1000), torch.nn.functional.silu(waves), 1e-12)


def test_half_precision_times_keep_their_resolution() -> None:
    """In bfloat16 the times 0.5001 and 0.5011 are one number; given in fp32 they stay apart in a bfloat16 model."""
    model = small_dit().bfloat16()
    x = torch.ones(2, *model.input_shape, dtype=torch.bfloat16)
    out = model(x, torch.tensor([0.5001, 0.5011]), torch.tensor([1, 1]))
    assert out.dtype == torch.bfloat16
    assert not torch.equal(out[0], out[1])


def test_missing_labels_mean_the_null_class() -> None:
    model = small_dit()
    x, t, y = batch(model)
    assert model.null_class == 3
    assert torch.equal(model(x, t), model(x, t, torch.full_like(y, 3)))
    assert not torch.equal(model(x, t), model(x, t, y))


def test_scalar_time_serves_the_whole_batch() -> None:
    model = small_dit()
    x, _, y = batch(model)
    t = torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(model(x, t, y), model(x, t.expand(3), y))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_derivatives_agree_in_every_mode(qk_norm: bool) -> None:
    model = small_dit(qk_norm=qk_norm)
    x, t, y = batch(model)
    tangents = torch.randn(4, *x.shape, dtype=torch.float64)

    def field(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, y)

    step = 1e-6
    value, tangent = jvp(field, (x, t), (tangents[0], torch.ones_like(t)))
    assert_close(value, field(x, t), 1e-13, "value")
    finite = field(x + step * tangents[0], t + step) - field(x - step * tangents[0], t - step)
    assert_close(tangent, finite / (2 * step), 1e-5, "jvp in x and t")

    _, pull = vjp(lambda x: field(x, t), x)
    cotangent = tangents[1]
    _, push = jvp(lambda x: field(x, t), (x,), (tangents[0],))
    assert_close((cotangent * push).sum(), (pull(cotangent)[0] * tangents[0]).sum(), 1e-12, "adjoint")

    together = vmap(lambda v: jvp(lambda x: field(x, t), (x,), (v,))[1])(tangents)
    apart = torch.stack([jvp(lambda x: field(x, t), (x,), (v,))[1] for v in tangents])
    assert_close(together, apart, 1e-12, "vmap of jvp")


def test_gradient_through_the_tangent() -> None:
    """d/dθ of ½‖J(θ) v‖² along a direction, against central differences."""
    model = small_dit(depth=1)
    x, t, y = batch(model, num=2)
    v = torch.randn_like(x)
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    direction = {k: torch.randn_like(p) for k, p in parameters.items()}

    def energy(parameters: dict[str, Tensor]) -> Tensor:
        def field(x: Tensor) -> Tensor:
            return functional_call(model, parameters, (x, t, y))

        return 0.5 * jvp(field, (x,), (v,))[1].square().sum()

    gradient = torch.func.grad(energy)(parameters)
    slope = sum((gradient[k] * direction[k]).sum() for k in parameters)
    step = 1e-6
    ahead, behind = ({k: p + s * direction[k] for k, p in parameters.items()} for s in (step, -step))
    finite = (energy(ahead) - energy(behind)) / (2 * step)
    assert_close(slope, finite, 1e-6)


@pytest.mark.slow
def test_compiles_as_one_graph_with_its_tangent() -> None:
    model = small_dit(depth=1, qk_norm=True)
    x, t, y = batch(model)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(lambda x: model(x, t, y), (x,), (torch.ones_like(x),))

    torch._dynamo.reset()
    results = []
    for f in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        value, tangent = f(x)
        (value * tangent).sum().backward()
        results.append((value, tangent, *(p.grad for p in model.parameters())))
    for compiled, eager in zip(*reversed(results)):
        assert_close(compiled, eager, 1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, t, y: m(x[:, :1], t, y), r"x must be \[B, 2, 8, 8\], got shape \(3, 1, 8, 8\)"),
        (lambda m, x, t, y: m(x, t[:2], y), r"t must be a scalar or \[3\], got shape \(2,\)"),
        (lambda m, x, t, y: m(x, t, y[:, None]), r"y must be \[3\], got shape \(3, 1\)"),
        (lambda m, x, t, y: small_dit(num_classes=0)(x, t, y), "no classes"),
        (lambda m, x, t, y: small_dit(class_dropout=0.0)(x, t), "y is required"),
        (lambda m, x, t, y: small_dit(patch_size=3), "patch_size must divide"),
        (lambda m, x, t, y: small_dit(num_heads=3), "num_heads must divide"),
        (lambda m, x, t, y: small_dit(hidden_size=18), "multiple of 4"),
        (lambda m, x, t, y: small_dit(class_dropout=1.0), r"class_dropout must be in \[0, 1\)"),
    ],
)
def test_bad_input_is_named(call: Callable[..., object], message: str) -> None:
    model = small_dit()
    with pytest.raises(ValueError, match=message):
        call(model, *batch(model))
