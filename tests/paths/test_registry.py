"""Paths by name."""

import pickle
from typing import get_args

import pytest

from fastflow import paths


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("condot", paths.CondOT()),
        ("cosine", paths.Cosine()),
        ("polynomial", paths.Polynomial(2)),
        ("linear_vp", paths.LinearVP()),
        ("vp", paths.VP()),
        ("sigma_min", paths.SigmaMin(0.2)),
        ("tube", paths.Tube(0.2)),
        ("independent", paths.Tube(0.2)),
        ("bridge", paths.SchrodingerBridge(0.2)),
    ],
)
def test_names_build_their_paths(name, path):
    assert paths.build(name, sigma=0.2) == path
    assert name in paths.NAMES


def test_every_path_has_a_name():
    exported = {c for c in vars(paths).values() if isinstance(c, type) and issubclass(c, paths.Path)}
    assert {type(paths.build(name, sigma=0.2)) for name in paths.NAMES} == exported - {paths.Path}


def test_names_are_the_choices_of_a_command_line():
    assert get_args(paths.PathName) == paths.NAMES


def test_bad_names_and_missing_widths_are_named():
    with pytest.raises(ValueError, match=r"path name must be one of 'condot', .*, got 'ot'"):
        paths.build("ot")
    with pytest.raises(ValueError, match="sigma must be given for path 'tube', got None"):
        paths.build("tube")
    with pytest.raises(ValueError, match="sigma must satisfy sigma >= 0, got -1"):
        paths.build("bridge", sigma=-1.0)


def test_the_former_name_of_the_tube_still_works():
    assert paths.Independent is paths.Tube
    old = b"\x80\x02cfastflow.paths\nIndependent\n)\x81}X\x05\x00\x00\x00sigmaG?\xd0\x00\x00\x00\x00\x00\x00sb."
    assert pickle.loads(old) == paths.Tube(0.25)
