"""Options as an object or as keywords, and the one choice of an implementation."""

import inspect
from dataclasses import fields

import pytest
import torch

import fastflow as ff
from fastflow.kernels.divergence import probes as probes_kernel
from fastflow.ops.divergence import DivergenceOptions, probes
from fastflow.sampling import mode_seeking
from tests.ops.divergence.problems import curved, matrix, points

NAMES = {field.name for field in fields(DivergenceOptions)}
OPTIONS = {"num_probes": 3, "distribution": "gaussian", "seed": 4, "chunk_size": 2}
FIELD, X = curved(matrix(3)), points(4, 3)
TIMES = torch.full((4,), 0.3, dtype=torch.float64)


def velocity(x, t):
    return FIELD(x)


def tensors(result):
    return [x for x in (result if isinstance(result, tuple) else vars(result).values()) if x is not None]


CALLS = {
    "divergence": lambda *o, **k: tensors(ff.divergence(FIELD, X, *o, **k)),
    "log_likelihood": lambda *o, **k: tensors(ff.log_likelihood(velocity, X, *o, num_steps=2, **k)),
    "mode_guidance": lambda *o, **k: [ff.mode_guidance(velocity, X, TIMES, *o, **k)],
    "mode_seeking": lambda *o, **k: [mode_seeking(velocity, 0.5, *o, **k)(X, TIMES)],
}
calls = pytest.mark.parametrize("name", CALLS)


@calls
def test_an_object_and_keywords_mean_the_same(name):
    as_keywords, as_object = CALLS[name](**OPTIONS), CALLS[name](DivergenceOptions(**OPTIONS))
    assert as_keywords
    assert all(torch.equal(a, b) for a, b in zip(as_keywords, as_object, strict=True))
    assert not torch.equal(as_keywords[-1], CALLS[name](**{**OPTIONS, "seed": 5})[-1])


@calls
def test_the_callers_probes_and_the_check_of_independence_are_options_everywhere(name):
    given = CALLS[name](probes=points(2, 4, 3), check_independence=True)
    assert all(torch.equal(a, b) for a, b in zip(given, CALLS[name](probes=points(2, 4, 3)), strict=True))


@calls
def test_unknown_keywords_and_double_options_are_named(name):
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'probe'"):
        CALLS[name](probe=1)
    with pytest.raises(TypeError, match=rf"^{name}\(\) takes 'seed' in options or as a keyword, not both"):
        CALLS[name](DivergenceOptions(), seed=1)
    with pytest.raises(TypeError, match="options must be DivergenceOptions, got dict"):
        CALLS[name]({})


@pytest.mark.parametrize("function", [ff.divergence, ff.log_likelihood, ff.mode_guidance, mode_seeking])
def test_signatures_list_the_options(function):
    parameters = inspect.signature(function).parameters
    assert set(parameters) > NAMES
    assert "keywords" not in parameters
    assert parameters["num_probes"].default == 1


@pytest.fixture
def drawn(monkeypatch):
    """Count the draws of the Triton kernel and the choices of an implementation."""
    counts = {"triton": 0, "select": 0}

    def count(name, function):
        def counted(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(probes_kernel, "probes", count("triton", probes_kernel.probes))
    monkeypatch.setattr(probes, "select", count("select", probes.select))
    return counts


@pytest.mark.parametrize("options", [{"num_probes": 3}, {"method": "hutch++", "num_probes": 7}], ids=str)
@pytest.mark.parametrize(("asked", "process"), [("triton", "reference"), ("reference", "triton"), ("auto", "triton")])
def test_one_choice_a_call_serves_the_draws_too(asked, process, options, drawn, device, monkeypatch):
    """``backend="auto"`` obeys FASTFLOW_BACKEND, and an explicit backend goes before it."""
    monkeypatch.setenv("FASTFLOW_BACKEND", process)
    x = X.float().to(device)
    got = ff.divergence(curved(matrix(3, torch.float32).to(device)), x, chunk_size=1, backend=asked, **options)
    assert drawn["select"] == 1
    assert (drawn["triton"] > 0) == ("triton" in (asked, process if asked == "auto" else ""))
    monkeypatch.delenv("FASTFLOW_BACKEND")
    want = ff.divergence(FIELD, X, **options).divergence
    torch.testing.assert_close(got.divergence.cpu().double(), want, rtol=1e-4, atol=1e-4)


def test_exact_traces_and_given_probes_choose_nothing(drawn):
    """They run whatever the backend, since nothing is drawn."""
    ff.divergence(FIELD, X, method="exact", backend="triton")
    ff.divergence(FIELD, X, probes=points(2, 4, 3), backend="triton")
    assert drawn["select"] == 0


def test_a_backend_that_cannot_draw_raises():
    with pytest.raises(ValueError, match=r"backend='triton' cannot serve divergence: the kernels take .*, not float64"):
        ff.divergence(FIELD, X, method="hutch++", num_probes=7, backend="triton")


def test_values_wider_than_x_are_summed_in_their_dtype(device):
    """The kernels do not take float64: ``"auto"`` leaves it to PyTorch, ``"triton"`` raises."""
    A = matrix(3).to(device)

    def widened(x):
        return curved(A)(x.double())

    x = X.float().to(device)
    assert ff.divergence(widened, x, num_probes=2, mode="forward").divergence.dtype == torch.float64
    with pytest.raises(ValueError, match=r"backend='triton' cannot serve divergence: .* not float64"):
        ff.divergence(widened, x, num_probes=2, mode="forward", backend="triton")


@pytest.mark.parametrize(("shape", "most"), [((2, 3), 64), ((8, 64), 64), ((32, 1, 8, 8), 16), ((4, 4, 32, 32), 4)])
def test_chunks_on_a_cpu_follow_the_size_of_x(shape, most, monkeypatch):
    """As many Jacobian products as have 32,768 numbers, but from 4 to 64."""
    sizes, take = [], probes.DrawnProbes.take

    def recorded(drawn, start, stop):
        sizes.append(stop - start)
        return take(drawn, start, stop)

    monkeypatch.setattr(probes.DrawnProbes, "take", recorded)
    ff.divergence(torch.sin, torch.zeros(shape), num_probes=130)
    assert max(sizes) == most
    assert sum(sizes) == 130
