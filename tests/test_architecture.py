"""The tree is the architecture: imports go one way, and packaging stays as it must."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A layer may import itself and what stands before it.
LAYERS = ["base", "kernels", "ops", "methods", "train", "cli"]
BASE = {"_backend", "_checks", "_dtypes", "_torch"}
METHODS = {"paths", "streams", "couplings", "objectives", "sampling", "nn"}


def layer(module: str) -> str | None:
    """The layer of ``fastflow.x.y``; None for the package itself."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    name = parts[1]
    if name not in {path.stem for path in (ROOT / "fastflow").iterdir()}:
        return None  # an attribute of the package
    if name in BASE:
        return "base"
    if name in METHODS:
        return "methods"
    return "cli" if name == "__main__" else name


def imports(path: Path, module: str):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            parts = [*module.split("."), *(["__init__"] if path.name == "__init__.py" else [])]
            base = ".".join([*parts[: -node.level], *filter(None, [node.module])])
            yield from [base] if node.module else (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def modules():
    for top in ("fastflow", "kernels"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if parts[:2] == ("fastflow", "kernels"):
                continue
            name = ".".join(parts if top == "fastflow" else ("fastflow", *parts))
            yield pytest.param(path, name.removesuffix(".__init__"), id=name)


@pytest.mark.parametrize(("path", "module"), list(modules()))
def test_imports_go_one_way(path, module):
    own = layer(module)
    if own is None:
        return
    assert own in LAYERS, f"{module} belongs to no layer"
    for name in imports(path, module):
        assert name.split(".")[0] != "kernels", f"{module} must import .kernels, not kernels"
        if name.split(".")[0] != "fastflow" or (target := layer(name)) is None:
            continue
        if target == own:
            continue
        assert LAYERS.index(target) < LAYERS.index(own), f"{module} ({own}) imports {name} ({target})"


def test_kernels_know_nothing_of_autograd_or_modules():
    for path in (ROOT / "kernels").rglob("*.py"):
        source = path.read_text()
        assert not re.search(r"autograd|torch\.nn\b(?!\.functional)|torch\.library", source), path


def test_ops_hold_no_triton_code():
    for path in (ROOT / "fastflow").rglob("*.py"):
        if "kernels" not in path.relative_to(ROOT / "fastflow").parts:
            assert "triton.jit" not in path.read_text(), path


def test_a_checkouts_kernels_folder_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "fastflow" / "kernels").is_symlink()


def test_files_stay_small():
    for top in ("fastflow", "kernels", "tests", "bench"):
        for path in (ROOT / top).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 600, path


def test_the_public_api_is_re_exports_only():
    tree = ast.parse((ROOT / "fastflow" / "__init__.py").read_text())
    for node in tree.body[1:]:
        if isinstance(node, ast.Assign):
            assert [t.id for t in node.targets] == ["__version__"]
        else:
            assert isinstance(node, ast.ImportFrom)
            assert all(alias.asname == alias.name for alias in node.names)


def test_imports_within_the_package_are_relative():
    """So that it loads under another name, from any path."""
    for path, module in (parameters.values for parameters in modules()):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] != "fastflow", module
            elif isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] != "fastflow" for alias in node.names), module


def test_private_pytorch_is_called_in_one_place():
    """``_torch.py`` gives each private call its reason; ATen operators are called in ``kernels/attention/aten.py``."""
    private = re.compile(r"\btorch\._\w|\b_functorch\b|\bforward_ad\._\w|\baten\._\w")
    allowed = {ROOT / "fastflow" / "_torch.py", ROOT / "kernels" / "attention" / "aten.py"}
    for path, module in (parameters.values for parameters in modules()):
        if path not in allowed:
            code = ast.unparse(ast.parse(path.read_text()))
            assert not private.search(re.sub(r'"""(?:.|\n)*?"""', "", code)), module
