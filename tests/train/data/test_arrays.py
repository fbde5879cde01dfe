"""Arrays from files: their layout, their precision, and what is refused."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastflow.train.data import DataSpec, arrays, load_data

RNG = np.random.default_rng(0)


def load(folder: Path, array: np.ndarray, labels: np.ndarray | None = None):
    np.save(folder / "x.npy", array)
    if labels is None:
        return load_data(str(folder / "x.npy"))
    np.save(folder / "y.npy", labels)
    return load_data(str(folder / "x.npy"), folder / "y.npy")


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e7, -1e9])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<i8"])
def test_the_mean_is_removed_before_anything_is_rounded(offset: float, dtype: str, tmp_path: Path) -> None:
    """Rounded to float32 first, values with an offset of 1e7 move by a good part of a standard deviation."""
    z = RNG.normal(size=(500, 2)) if "f" in dtype else RNG.integers(-3, 4, (500, 2))
    x = (z + int(offset)).astype(dtype)
    data = load(tmp_path, x)
    exact = (x.astype(np.longdouble) - x.astype(np.longdouble).mean()) / x.astype(np.longdouble).std()
    seen = data.spec.standardise(data.samples.x)
    assert seen.dtype == torch.float32
    assert np.abs(seen.numpy() - exact).max() < 2e-6
    back = data.spec.to_data_units(seen)
    assert np.abs(back.numpy().astype(np.longdouble) - x.astype(np.longdouble)).max() < 1e-5 * max(1.0, data.spec.std)


def test_single_precision_is_kept_where_it_is_enough(tmp_path: Path) -> None:
    assert load(tmp_path, RNG.normal(3.0, 1.0, (9, 2))).samples.x.dtype == torch.float32
    assert load(tmp_path, RNG.normal(1e4, 1.0, (9, 2))).samples.x.dtype == torch.float64


@pytest.mark.parametrize("scale", [1e-90, 1e-30, 1e30, 1e90])
def test_any_scale(scale: float, tmp_path: Path) -> None:
    z = RNG.normal(size=(200, 2))
    data = load(tmp_path, scale * z)
    seen = data.spec.standardise(data.samples.x)
    assert seen.std(correction=0).item() == pytest.approx(1.0, rel=1e-6)
    assert np.allclose(data.spec.to_data_units(seen).numpy() / scale, z, atol=1e-5)


@pytest.mark.parametrize("dtype", ["?", "u1", "<u2", ">u2", "i1", "<i4", ">i8", "<u8", "<f2", ">f2", "<f4", ">f4", "g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_real_dtype_and_order(dtype: str, order: str, tmp_path: Path) -> None:
    x = np.asarray(RNG.integers(0, 2, (30, 2, 3, 5)), dtype=dtype, order=order)
    x = np.concatenate((x, x), axis=1)[:, :3] if dtype == "u1" else x
    data = load(tmp_path, x)
    expected = x.astype(np.float64) / (255.0 if dtype == "u1" else 1.0)
    assert data.spec.kind == ("images" if dtype == "u1" else "latents")
    assert np.allclose(data.samples.x.numpy(), expected)


def test_large_integers_are_exact_or_refused(tmp_path: Path) -> None:
    x = np.array([[0, 3], [1, 2]])
    for offset in (10**12, -(10**12)):
        data = load(tmp_path, x + offset)
        assert data.spec.std == pytest.approx(x.std(), rel=1e-7)
        assert torch.equal(data.samples.x, torch.from_numpy(x + offset).double())
    for dtype, offset in (("i8", 2**62), ("i8", -(2**63)), ("u8", 2**64 - 9)):
        with pytest.raises(ValueError, match=r"x.npy holds values near -?\d+ that differ too little for float64"):
            load(tmp_path, x.astype(dtype) + np.array(offset, dtype=dtype))
    wide = np.array([[-(2**63), 2**63 - 1]])
    assert load(tmp_path, wide).spec.std == pytest.approx(2.0**63)


def test_moments_are_accumulated_in_float64_and_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_CHUNK", 1000)
    x = RNG.normal(1.0, 1e-3, (1000, 3, 4, 1)).astype(np.float32)
    spec = load(tmp_path, x).spec
    assert spec.mean == pytest.approx(x.astype(np.float64).mean(), abs=1e-10)
    assert spec.std == pytest.approx(x.astype(np.float64).std(), rel=1e-7)
    monkeypatch.undo()
    assert load(tmp_path, x).spec == spec


def test_a_constant_channel_is_data(tmp_path: Path) -> None:
    x = RNG.normal(size=(9, 2, 3, 3))
    x[:, 1] = 7.0
    assert load(tmp_path, x).samples.x.isfinite().all()


def test_one_value_throughout_is_found_at_any_value(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x.npy holds one value throughout"):
        load(tmp_path, np.full((999, 3), 0.1))


LAYOUTS = {
    "bytes, channels last": (np.zeros((5, 32, 32, 3), np.uint8), r"looks like \[N, H, W, C\]: save x.transpose"),
    "bytes, grey last": (np.zeros((5, 32, 24, 1), np.uint8), r"looks like \[N, H, W, C\]"),
    "bytes, RGBA last": (np.zeros((5, 8, 8, 4), np.uint8), r"looks like \[N, H, W, C\]"),
    "floats, channels last": (RNG.normal(size=(5, 32, 32, 3)), r"looks like \[N, H, W, C\]"),
    "latents, channels last": (RNG.normal(size=(5, 16, 16, 4)), r"looks like \[N, H, W, C\]"),
    "floats, wide and last": (RNG.normal(size=(5, 32, 24, 3)), r"looks like \[N, H, W, C\]"),
    "bytes, RGBA": (np.zeros((5, 4, 8, 8), np.uint8), "bytes with 4 channels: lay images over a background"),
    "bytes, LA": (np.zeros((5, 2, 8, 8), np.uint8), "bytes with 2 channels"),
    "no channels": (np.zeros((5, 28, 28), np.uint8), r"got shape \(5, 28, 28\); save x\[:, None\]"),
    "no samples": (np.zeros((0, 3, 8, 8), np.uint8), "must hold"),
    "one number": (np.zeros((), np.float32), "must hold"),
    "video": (np.zeros((2, 3, 4, 8, 8), np.uint8), "must hold"),
    "complex": (np.ones((4, 2), np.complex64), "holds complex64, not real numbers"),
    "dates": (np.zeros((4, 2), "datetime64[s]"), "not real numbers"),
    "records": (np.zeros((4, 2), [("a", "f4"), ("b", "i4")]), "not real numbers"),
    "infinite": (np.array([[1.0, np.inf]]), "not finite"),
    "infinite halves": (np.array([[1.0, -np.inf]], np.float16), "not finite"),
    "beyond float64": (np.array([[-1.7e308, 1.7e308]]), "squares float64 cannot hold"),
    "large": (np.array([[1e200, 2e200]]), "squares float64 cannot hold"),
    "small": (np.array([[0.0, 1e-200]]), "squares float64 cannot hold"),
}


@pytest.mark.parametrize(("array", "message"), LAYOUTS.values(), ids=LAYOUTS)
def test_refused_arrays(array: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"x\.npy.*{message}") as caught:
        load(tmp_path, array)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (5, 1, 8, 8), (5, 3, 3, 3), (5, 3, 8, 3), (1, 1, 1, 1)])
def test_bytes_in_the_documented_layout_are_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = RNG.integers(0, 256, shape, dtype=np.uint8)
    data = load(tmp_path, x)
    assert (data.spec.kind, data.spec.mean, data.spec.std) == ("images", 0.5, 0.5)
    assert torch.equal(data.samples.x, torch.from_numpy(x) / 255.0)


@pytest.mark.parametrize("shape", [(5, 4, 8, 8), (5, 8, 4, 4), (5, 16, 4, 4), (5, 4, 4, 4), (5, 64, 128, 1)])
def test_latents_in_the_documented_layout(shape: tuple[int, ...], tmp_path: Path) -> None:
    assert load(tmp_path, RNG.normal(size=shape)).spec.kind == "latents"


def test_refused_files(tmp_path: Path) -> None:
    file = tmp_path / "bad.npy"

    def refusal() -> str:
        with pytest.raises(ValueError, match=r"cannot read the array .*bad\.npy") as caught:
            load_data(str(file))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    np.savez(tmp_path / "a.npz", RNG.normal(size=(4, 2)))
    file.write_bytes((tmp_path / "a.npz").read_bytes())
    assert zipfile.is_zipfile(file)
    assert "an .npz archive" in refusal()
    file.write_bytes(b"\x1f\x8b" + bytes(50))
    assert "compressed with gzip" in refusal()
    np.save(file, RNG.normal(size=(100, 2)))
    content = file.read_bytes()
    for size in (len(content) - 1, 100, 8, 6):
        file.write_bytes(content[:size])
        refusal()
    file.write_bytes(content + content)
    assert f"{len(content)} more bytes follow the array" in refusal()
    for old, new in ((b"(100, 2)", b"(10**9,)"), (b"(100, 2)", b"(-10, 2)"), (b"'<f8'", b"'<q8'"), (b"{", b"(")):
        file.write_bytes(content.replace(old, new))
        refusal()
    huge = content.replace(b"(100, 2), }" + 9 * b" ", b"(1000000000000, 2)}"[:20].ljust(20))
    file.write_bytes(huge)
    refusal()
    file.unlink()
    file.mkdir()
    with pytest.raises(ValueError, match="no images under"):
        load_data(str(file))


def test_upper_case_suffix(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(4, 2)))
    (tmp_path / "x.npy").rename(tmp_path / "x.NPY")
    assert load_data(str(tmp_path / "x.NPY")).spec.kind == "points"


def test_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    x, y = RNG.normal(size=(8, 1, 2, 2)), np.arange(8) % 2
    first = load(tmp_path, x, y).spec
    assert load(tmp_path, x.copy(), y.copy()).spec == first
    prints = {first.fingerprint}
    swapped = x[[1, 0, *range(2, 8)]]
    others = [(swapped, y), (x, 1 - y), (x, None), (x.reshape(8, 1, 4, 1), y), (x.astype(np.float32), y)]
    for other in others:
        prints.add(load(tmp_path, *other).spec.fingerprint)
    assert len(prints) == 1 + len(others)


def test_data_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastflow.train.memory._free_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"x.npy, an array of shape \(200, 2\), would need 0.0 GiB of memory"):
        load(tmp_path, RNG.normal(size=(200, 2)))


def test_spec_survives_json_and_refuses_the_impossible() -> None:
    spec = DataSpec("latents", (4, 8, 8), ("1", "7"), 0.1, 2.0, "abc")
    values = {"kind": "latents", "shape": [4, 8, 8], "class_names": ["1", "7"], "mean": 0.1, "std": 2.0}
    assert DataSpec.from_json({**values, "fingerprint": "abc"}) == spec
    for wrong in ({"std": 0.0}, {"std": float("nan")}, {"mean": float("inf")}, {"shape": [4, 0, 8]}, {"shape": []}):
        with pytest.raises(ValueError, match="no data has shape"):
            DataSpec.from_json({**values, "fingerprint": "", **wrong})
