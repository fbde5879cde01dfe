"""`fastflow likelihood` and mode-seeking guidance on the command line."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from fastflow import cli, paths
from fastflow.train.densities import _source_log_prob, data_densities
from fastflow.train.errors import NonFiniteError
from fastflow.train.runs import load_run

for library in ("tyro", "safetensors", "tqdm", "matplotlib", "scipy", "sklearn"):
    pytest.importorskip(library)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    common = [
        *("--sample-every", "0", "--sample-steps", "2", "--eval-samples", "0"),
        *("--hidden-size", "16", "--depth", "1"),
    ]
    for data, steps in (("moons", "200"), ("digits", "4")):
        cli.main(["train", "--data", data, "--steps", steps, "--out", str(folder / data), *common])
    return {data: folder / data for data in ("moons", "digits")}


def printed(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def test_likelihood_of_points(runs, tmp_path, capsys):
    out = tmp_path / "deep" / "h.png"
    arguments = ["--num", "50", "--method", "exact", "--steps", "10", "--out", str(out)]
    cli.main(["likelihood", str(runs["moons"]), *arguments])
    values = printed(capsys.readouterr().out)
    assert set(values) == {"samples", "nats", "bits_per_dim", "histogram"}
    nats, bits = (float(values[name].split()[0]) for name in ("nats", "bits_per_dim"))
    assert bits == pytest.approx(-nats / (2 * math.log(2)), abs=2e-4)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_likelihood_of_images_prints_the_probes_error(runs, tmp_path, capsys):
    arguments = ["--num", "10", "--num-probes", "2", "--steps", "2", "--levels", "17", "--out", str(tmp_path / "h.png")]
    cli.main(["likelihood", str(runs["digits"]), *arguments])
    values = printed(capsys.readouterr().out)
    assert "2 probes" in values["probe_error"]
    assert 4 < float(values["bits_per_dim"].split()[0]) < 6  # hardly trained: a little above log2 17


def test_densities_are_a_function_of_the_seed(runs):
    run = load_run(runs["digits"])
    one, again, other = (data_densities(run, 10, num_steps=2, method="exact", seed=s).bits_per_dim for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_densities_that_are_not_finite_are_refused(runs):
    run = load_run(runs["moons"])
    run.model.forward = lambda x, t, y=None: x * float("inf")
    with pytest.raises(NonFiniteError, match="10 of 10 log-densities are not finite"):
        data_densities(run, 10, num_steps=2, method="exact")


@pytest.mark.parametrize("path", [paths.CondOT(), paths.Independent(0.5), paths.SchrodingerBridge(0.5), paths.VP()])
def test_source_density_has_the_width_of_the_path(path):
    x = torch.randn(7, 3)
    width = 1.25**0.5 if isinstance(path, paths.Independent) else 1.0
    expected = torch.distributions.Normal(0.0, width).log_prob(x).sum(1)
    torch.testing.assert_close(_source_log_prob(path, x), expected, rtol=1e-3, atol=1e-3)


def test_sample_takes_mode_guidance(runs, tmp_path):
    arrays = []
    for weight in ("0", "1"):
        out = tmp_path / f"{weight}.npz"
        arguments = ["--num", "20", "--steps", "10", "--mode-guidance", weight, "--out", str(out)]
        cli.main(["sample", str(runs["moons"]), *arguments])
        arrays.append(np.load(out)["x"])
    assert np.isfinite(arrays[1]).all()
    assert (arrays[0] != arrays[1]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--num 0", "num must be at least 1, got 0"),
        ("--levels 1", "levels must be at least 2, got 1"),
        ("--out h.pdf", "out must end in .png, got 'h.pdf'"),
        ("--num-probes 0", "num_probes must be at least 1, got 0"),
    ],
)
def test_errors_are_one_line_and_status_two(arguments, message, runs, capsys):
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["likelihood", str(runs["moons"]), *arguments.split()])
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured
