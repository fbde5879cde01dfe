"""The parts of the trainer: settings, moving average, log, pictures, and that it learns."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastflow.kernels.noise.domains import Domain
from fastflow.ops.random import GaussianNoise, uniform
from fastflow.train import Config, classifier, load_run, train
from fastflow.train.config import PathName
from fastflow.train.data import DataSpec, load_data
from fastflow.train.ema import EMA
from fastflow.train.extras import extra
from fastflow.train.log import NonFiniteError, RunLog, read_rows
from fastflow.train.loop import batch_loss, learning_rate
from fastflow.train.plots import plot_losses, plot_samples
from fastflow.train.purposes import Purpose
from fastflow.train.runs import build_model, build_path, generate

for library in ("safetensors", "tqdm", "matplotlib", "scipy"):
    pytest.importorskip(library)

FAST = {"data": "moons", "hidden_size": 16, "sample_every": 0, "sample_steps": 2, "eval_samples": 0}
CPU = torch.device("cpu")


def test_config_survives_json() -> None:
    config = Config(data="x.npy", labels=Path("y.npy"), out=Path("runs/a"), seed=3, hidden_size=8)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": math.nan}, "learning_rate must be positive, got nan"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"class_dropout": -0.1}, r"class_dropout must be in \[0, 1\)"),
        ({"seed": -1}, "seed must not be negative"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**settings)


def test_every_field_is_documented_for_the_command_line() -> None:
    source = Path(dataclasses.sys.modules[Config.__module__].__file__).read_text()
    for field in dataclasses.fields(Config):
        assert f"    {field.name}: " in source
        assert source.split(f"    {field.name}: ")[1].split("\n")[1].strip().startswith('"""'), field.name


def test_purposes_never_meet() -> None:
    """Two purposes at any two steps have different offsets, and so have different numbers."""
    offsets = {purpose.at(step) for purpose in Purpose for step in (0, 1, 10**6, (1 << 48) - 1)}
    assert len(offsets) == 4 * len(Purpose)
    assert max(offsets) < 1 << 63
    draws = [uniform((8,), 0, purpose.at(0)) for purpose in Purpose]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


def test_moving_average_in_full_precision() -> None:
    """In bfloat16 an update of 1 part in 1,000 would be lost."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).bfloat16()
    ema = EMA(model, decay=0.999)
    expected = [p.detach().double() for p in model.parameters()]
    for step in range(50):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.01 * torch.randn_like(p))
        ema.update(step)
        decay = min(0.999, (1 + step) / (10 + step))
        expected = [decay * e + (1 - decay) * p.detach().double() for e, p in zip(expected, model.parameters())]
    for average, e in zip(ema.model.parameters(), expected):
        assert average.dtype == torch.float32
        assert not average.requires_grad
        assert torch.allclose(average.double(), e, rtol=1e-5, atol=1e-7)


def test_warm_up() -> None:
    config = Config(learning_rate=0.5, warmup_steps=4)
    assert [learning_rate(config, step) for step in (0, 1, 3, 4, 1000)] == [0.125, 0.25, 0.5, 0.5, 0.5]
    assert learning_rate(Config(learning_rate=0.5, warmup_steps=0), 0) == 0.5


@pytest.mark.parametrize("path", PathName.__args__)
def test_batch_loss_is_the_flow_matching_loss(path: str) -> None:
    """A network that returns zero: the loss is the mean square of the target, written out here from the draws."""
    config = Config(**FAST, path=path, sigma=0.2, seed=4)
    data, probability_path = load_data(config.data), build_path(config)
    x1, _ = data.batch(6, config.batch_size, 4)
    x0, z = (GaussianNoise(4, s.at(6)).materialize(x1.shape) for s in (Purpose.NOISE, Purpose.BRIDGE))
    low, high = probability_path.domain
    t = low + (high - low) * uniform((config.batch_size,), 4, Purpose.TIMES.at(6), domain=Domain.UNIFORM_TIMES)
    c = [v[:, None] for v in probability_path.coefficients(t)]
    seen = {}

    def network(xt: torch.Tensor, t: torch.Tensor, y: None) -> torch.Tensor:
        seen["xt"] = xt
        return torch.zeros_like(xt)

    loss = batch_loss(config, data, probability_path, network, 6, CPU)
    assert torch.allclose(seen["xt"], c[0] * x1 + c[1] * x0 + c[2] * z, atol=1e-5)
    assert torch.allclose(loss, (c[3] * x1 + c[4] * x0 + c[5] * z).square().mean(), rtol=1e-4)


def test_labels_are_dropped_at_the_rate_asked_for(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 1, 2, 2)))
    np.save(tmp_path / "y.npy", np.arange(40) % 4)
    config = Config(data=str(tmp_path / "x.npy"), labels=tmp_path / "y.npy", class_dropout=0.25, batch_size=2000)
    data = load_data(config.data, config.labels)
    dropped = []

    def network(xt: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        original = data.batch(len(dropped), 2000, 0)[1]
        assert ((y == original) | (y == 4)).all()
        dropped.append(y == 4)
        return torch.zeros_like(xt)

    for step in range(2):
        batch_loss(config, data, build_path(config), network, step, CPU)
    share = torch.stack(dropped).double().mean()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert not torch.equal(*dropped)


@pytest.mark.filterwarnings("ignore:.*")
def test_divergence_stops_the_run_and_names_step_and_checkpoint(tmp_path: Path) -> None:
    train(Config(**FAST, steps=5, out=tmp_path))
    file = tmp_path / "checkpoints" / "step_00000005"
    config = Config(**{**FAST, "path": "condot"}, steps=50, out=tmp_path, resume=True)
    poisoned = dataclasses.replace(config, log_every=4)
    original, calls = torch.nn.utils.clip_grad_norm_, 0

    def poison(parameters: object, limit: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        norm = original(parameters, limit)
        return norm * math.inf if calls == 2 else norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", poison)
        with pytest.raises(NonFiniteError, match=rf"gradient's norm is inf at step 7; last good checkpoint: {file}"):
            train(poisoned)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


def test_exploding_run_is_stopped_before_it_is_saved(tmp_path: Path) -> None:
    config = Config(**FAST, steps=30, learning_rate=1e30, warmup_steps=0, out=tmp_path)
    with pytest.raises(NonFiniteError, match=r"is (nan|inf) at step \d+; last good checkpoint: none"):
        train(config)
    assert not (tmp_path / "checkpoints").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the step and its gradient were finite."""
    update = EMA.update

    def poison(self: EMA, step: int) -> None:
        update(self, step)
        if step == 4:
            next(self.model.parameters()).fill_(math.nan)

    monkeypatch.setattr(EMA, "update", poison)
    message = r"^ema: layers\.0\.\w+ is not finite at step 6; last good checkpoint: .*step_00000003$"
    with pytest.raises(NonFiniteError, match=message):
        train(Config(**FAST, steps=9, checkpoint_every=3, out=tmp_path))
    assert [f.name for f in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


def test_log_survives_a_torn_last_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, tensorboard=False)
    for step in range(1, 4):
        log.add(step, 0.1, torch.tensor(1.0 / step), torch.tensor(2.0))
    assert log.flush() == pytest.approx(1 / 3)
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 4, "lo')
    assert [row["step"] for row in read_rows(file)] == [1, 2, 3]
    assert RunLog(tmp_path, 2, tensorboard=False).curve() == ([1, 2], [1.0, 0.5])
    assert len(read_rows(file)) == 2


def test_tensorboard_on_request(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(Config(**FAST, steps=3, out=tmp_path / "on", tensorboard=True))
    train(Config(**FAST, steps=3, out=tmp_path / "off"))
    assert any((tmp_path / "on" / "tensorboard").iterdir())
    assert not (tmp_path / "off" / "tensorboard").exists()


def test_missing_library_names_the_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastflow\[train\]'"):
        extra("no_such_library.part")


@pytest.mark.parametrize(
    ("spec", "num", "labelled"),
    [
        (DataSpec("images", (1, 8, 8), tuple("abc"), 0.5, 0.5), 13, True),
        (DataSpec("images", (3, 8, 12), (), 0.5, 0.5), 7, False),
        (DataSpec("latents", (4, 8, 8), (), 1.0, 2.0), 5, False),
        (DataSpec("points", (2,), (), 0.0, 1.0), 20, False),
        (DataSpec("points", (1,), (), 0.0, 1.0), 20, False),
    ],
    ids=["classes", "colour", "latents", "points", "line"],
)
def test_pictures_of_every_kind_of_data(spec: DataSpec, num: int, labelled: bool, tmp_path: Path) -> None:
    x = torch.randn(num, *spec.shape)
    plot_samples(
        tmp_path / "a.png", spec, x, torch.arange(num) % 3 if labelled else None, title="a title", real=x + 1.0
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("num", [1, 2, 500])
def test_loss_curve_of_any_length(num: int, tmp_path: Path) -> None:
    plot_losses(tmp_path / "loss.png", range(1, num + 1), [1.0 / k for k in range(1, num + 1)])
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_samples_do_not_depend_on_their_number_and_return_in_data_units() -> None:
    spec = DataSpec("points", (2,), (), 10.0, 2.0)
    model = build_model(Config(**FAST), spec)
    settings = {"seed": 0, "num_steps": 3}
    many = generate(model, spec, build_path(Config()), 600, **settings)
    few = generate(model, spec, build_path(Config()), 5, **settings)
    assert torch.allclose(many[:5], few, atol=1e-5)
    nothing = nn.Linear(1, 1)  # a stand-in with parameters
    nothing.forward = lambda x, t: torch.zeros_like(x)
    noise = generate(nothing, spec, build_path(Config()), 2000, **settings)
    assert noise.mean().item() == pytest.approx(10.0, abs=0.1)
    assert noise.std().item() == pytest.approx(2.0, abs=0.1)


def test_guidance_without_labels_is_refused() -> None:
    spec = DataSpec("points", (2,), (), 0.0, 1.0)
    model = build_model(Config(**FAST), spec)
    with pytest.raises(ValueError, match="needs labels"):
        generate(model, spec, build_path(Config()), 2, seed=0, num_steps=1, guidance=2.0)


def test_samples_that_are_not_finite_are_refused() -> None:
    spec = DataSpec("points", (2,), (), 0.0, 1.0)
    model = build_model(Config(**FAST), spec)
    with pytest.raises(NonFiniteError, match="the samples are not finite: use less guidance"):
        generate(model, spec, build_path(Config()), 2, seed=0, num_steps=1, mode_guidance=1e300)


@pytest.mark.slow
def test_training_learns_digits_and_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the demo: chance is 0.1, and the untrained model's distance is the ceiling."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(classifier, "_EPOCHS", 15)  # 40 take longer than the training and tell no more here
    small = {"batch_size": 64, "hidden_size": 64, "depth": 2, "learning_rate": 3e-3, "ema_decay": 0.98}
    config = Config(**small, steps=200, warmup_steps=20, eval_samples=200, sample_steps=6, sample_every=0, out=tmp_path)
    summary = train(config)
    assert summary["class_accuracy_real"] > 0.9
    assert summary["class_accuracy"] > 0.6
    assert summary["frechet_distance"] < 0.4 * summary["frechet_noise"]


@pytest.mark.slow
def test_training_learns_the_moons(tmp_path: Path) -> None:
    """Nearer to the data than noise by far, and near the distance of two real draws."""
    settings = {"data": "moons", "hidden_size": 64, "learning_rate": 3e-3, "ema_decay": 0.99}
    config = Config(**settings, steps=1200, batch_size=256, out=tmp_path, sample_every=600)
    summary = train(config)
    assert summary["w2"] < 0.4 * summary["w2_noise"]
    assert summary["w2"] < 2.0 * summary["w2_floor"]
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    files = {str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*.*") if "checkpoints" not in str(f)}
    pictures = {"samples.png", "loss.png", "samples/step_00000600.png", "samples/step_00001200.png"}
    assert files == {"metrics.jsonl", "summary.json", *pictures}
    run = load_run(tmp_path)
    assert run.step == 1200
    assert run.config == config
    x = generate(run.model, run.spec, run.path, 100, seed=1, num_steps=25)
    assert x.isfinite().all()
