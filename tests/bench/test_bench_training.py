"""The training steps that are timed are the same step, and the batch that is called the largest is."""

import pytest
import torch

import fastflow as ff
from bench.harness.case import relative_error
from bench.suites.largest_batch import largest, predicted
from bench.suites.models import with_random_zeros
from bench.suites.training import OBJECTIVES, Batch, Training
from fastflow.nn import dit
from fastflow.ops._twice_differentiable import TwiceDifferentiable


@pytest.fixture(params=OBJECTIVES)
def training(request):
    torch.manual_seed(0)
    model = ff.nn.DiT(4, 2, 2, hidden_size=16, depth=2, num_heads=2, num_classes=10)
    return Training(with_random_zeros(model), request.param, torch.float32)


WAYS = ("PyTorch", "fastflow")


def test_every_way_has_the_gradients_of_float64(training):
    batch = Batch.draw(5, (2, 4, 4))
    truth = training.truth(batch, together=2)
    for way in WAYS:
        loss, gradient = map(relative_error, training.gradients(way, batch), truth)
        assert loss < 1e-5, way
        assert gradient < 1e-4, way


def test_a_step_learns_and_leaves_nothing_behind(training):
    batch = Batch.draw(3, (2, 4, 4))
    for way in WAYS:
        before = [p.clone() for p in training.model.parameters()]
        (loss,) = training.step(way, batch)
        assert loss.isfinite()
        assert not loss.requires_grad
        assert all(not p.equal(old) for p, old in zip(training.model.parameters(), before))
        assert all(p.grad is None for p in training.model.parameters())
    assert dit.attention is ff.attention


def test_only_the_tangent_loss_has_a_gradient_through_the_tangent():
    """A field ``(a + b t) x``, so ∂u/∂t = b x; the gradients in a and b by hand."""
    x, t, v = torch.randn(3, 1, 1, 1), torch.tensor([0.2, 0.5, 0.9]), torch.randn(3, 1, 1, 1)
    a, b = (torch.tensor(value, requires_grad=True) for value in (0.7, -1.3))
    time = t.view(-1, 1, 1, 1)

    def field(x, t, y):
        return (a + b * t.view(-1, 1, 1, 1)) * x

    def gradients(name):
        return torch.autograd.grad(OBJECTIVES[name](field, x, t, torch.zeros(3), v), (a, b))

    with torch.no_grad():
        u, du_dt = field(x, t, None), b * x
        total = du_dt + (a + b * time) * v
        residuals = {"CFM": u - v, "MeanFlow": u - v + time * total, "tangent": u + (1 - time) * du_dt - v}
    for name, residual in residuals.items():
        along_b = time + (1 - time) if name == "tangent" else time
        want = [(2 * residual * x).mean(), (2 * residual * along_b * x).mean()]
        torch.testing.assert_close(gradients(name), tuple(want))


def test_the_baseline_calls_no_op_of_fastflow(training, monkeypatch):
    called = []
    monkeypatch.setattr(TwiceDifferentiable, "__call__", lambda op, *_: called.append(op.name) or 1 / 0)
    training.gradients("PyTorch", Batch.draw(2, (2, 4, 4)))
    assert called == []
    with pytest.raises(ZeroDivisionError):
        training.gradients("fastflow", Batch.draw(2, (2, 4, 4)))


def test_the_plain_step_shares_model_and_optimizer(training):
    plain = training.plain()
    assert (plain.model, plain.optimizer) == (training.model, training.optimizer)
    assert plain.objective is OBJECTIVES["CFM"]


@pytest.mark.parametrize("guess", [1, 3, 90, 300, 340, 1000])
@pytest.mark.parametrize("limit", [1, 7, 100, 333])
def test_the_largest_batch_was_tried_and_a_larger_one_too(limit, guess):
    tried = set()
    size = largest(lambda size: tried.add(size) or size <= limit, guess)
    step = max(1, guess // 32)
    assert limit - step < size <= limit
    assert (size in tried and size + step in tried) or (size == 0 and min(tried) > limit)


def test_a_prediction_is_exact_where_memory_is_a_constant_and_a_share_a_sample():
    assert predicted(lambda size: 1000 + 7 * size, 8, 1000 + 7 * 500) == 500
