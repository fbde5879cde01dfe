"""GaussianNoise, uniform and permutation as users call them."""

import pytest
import torch

import fastflow as ff
from fastflow.kernels.noise import reference
from fastflow.kernels.noise.domains import Domain
from fastflow.ops.random import permutation, uniform


def test_materialize_fills_any_shape_in_contiguous_order():
    noise = ff.GaussianNoise(3, offset=1)
    flat = noise.materialize((24,))
    assert torch.equal(noise.materialize((2, 3, 4)), flat.view(2, 3, 4))
    assert torch.equal(noise.materialize((4, 6)), flat.view(4, 6))
    assert noise.materialize((0, 3)).shape == (0, 3)
    assert noise.materialize(()).shape == ()


@pytest.mark.parametrize("numel", [1, 5, 8192, 40_000])
def test_every_offset_has_its_own_draw(numel):
    for offset in (0, 1, 6, 63, 64, 129):
        assert torch.equal(ff.GaussianNoise(3, offset).materialize((numel,)), reference.gaussian(numel, 3, offset))
        assert torch.equal(uniform((numel,), 3, offset), reference.uniforms(numel, 3, offset, 1, 0, Domain.UNIFORM)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_materialize_casts_the_fp32_draws(dtype):
    noise = ff.GaussianNoise(3)
    assert torch.equal(noise.materialize((5, 7), dtype=dtype), noise.materialize((5, 7)).to(dtype))


def test_noise_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    ff.GaussianNoise(1).materialize((100,))
    uniform((100,), 1)
    permutation(100, 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_permutation_is_a_permutation_and_uniform_over_them():
    assert sorted(permutation(1000, 5, 6).tolist()) == list(range(1000))
    counts = torch.zeros(4, 4)
    for offset in range(2000):
        counts[torch.arange(4), permutation(4, 0, offset)] += 1
    assert (counts - 500).abs().max() < 4.5 * (2000 * 3 / 16) ** 0.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ff.GaussianNoise(-1), ValueError, "seed must satisfy 0 <= seed < 2^63, got -1"),
        (lambda: ff.GaussianNoise(0, offset=1 << 63), ValueError, "offset must satisfy"),
        (lambda: ff.GaussianNoise(0.5), TypeError, "seed must be an int, got float"),
        (lambda: ff.GaussianNoise(True), TypeError, "seed must be an int, got bool"),
        (lambda: ff.GaussianNoise(0).materialize((2,), dtype=torch.int64), TypeError, "dtype must be a floating"),
        (lambda: uniform((2,), -5), ValueError, "seed must satisfy"),
    ],
)
def test_bad_streams_are_named(make, error, message):
    with pytest.raises(error, match=message.replace("^", r"\^")):
        make()


@pytest.mark.parametrize("draw", [lambda k: ff.GaussianNoise(k).materialize((2, 3)), lambda k: uniform((2, 3), k)])
def test_a_first_draw_inside_a_transform(draw):
    """The cached numbers are not wrapped by the transform, so a later trace can read them."""
    x = torch.ones(2, 3)
    first = 90_000  # seeds that no other test draws
    out, tangent = torch.func.jvp(lambda x: x * draw(first), (x,), (x,))
    gradient = torch.func.grad(lambda x: (x * draw(first + 1)).sum())(x)
    mapped = torch.vmap(lambda x: x * draw(first + 2)[0])(x)
    torch._dynamo.reset()
    leaf = x.clone().requires_grad_()
    step = torch.compile(lambda x: torch.func.jvp(lambda x: x * draw(first), (x,), (x,)), backend="aot_eager")
    assert torch.equal(step(leaf)[1], out)
    assert torch.equal(out, draw(first))
    assert torch.equal(tangent, draw(first))
    assert torch.equal(gradient, draw(first + 1))
    assert torch.equal(mapped, draw(first + 2)[0].expand(2, 3))


def test_a_draw_is_the_callers_to_change():
    for draw in (lambda: ff.GaussianNoise(4, 9).materialize((5,)), lambda: uniform((5,), 4, 9)):
        expected = draw().clone()
        draw().zero_()
        assert torch.equal(draw(), expected)


@pytest.mark.parametrize(
    "draw", [lambda k: ff.GaussianNoise(1, k).materialize((3, 5)), lambda k: uniform((3, 5), 1, k)], ids=["n", "u"]
)
def test_drawing_compiles_and_does_not_recompile_for_every_offset(draw):
    torch._dynamo.reset()
    count = 0

    def backend(graph, _):
        nonlocal count
        count += 1
        return graph.forward

    drawn = torch.compile(lambda x, k: x + draw(k), fullgraph=True, backend=backend)
    for k in range(3, 9):
        assert torch.equal(drawn(torch.zeros(3, 5), k), draw(k))
    assert count <= 2


def test_the_op_is_well_formed(device):
    args = ([3, 5], 1, 2, 15, 0, torch.float32, device)
    torch.library.opcheck(torch.ops.fastflow.gaussian.default, args)
    torch.library.opcheck(torch.ops.fastflow.uniform.default, args)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_draws_the_same_numbers(dtype, device):
    noise = ff.GaussianNoise(3, offset=1 << 40)
    drawn = noise.materialize((3, 1001), dtype=dtype, device=device)
    one_ulp = max(1e-6, torch.finfo(dtype).eps)  # beside a rounding boundary a draw may fall either way
    torch.testing.assert_close(drawn.cpu(), noise.materialize((3, 1001), dtype=dtype), rtol=one_ulp, atol=0)
