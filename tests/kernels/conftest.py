"""Interpreted kernels at three times the speed."""

import os

import pytest


@pytest.fixture(autouse=True, scope="package")
def language_patched_once():
    """Triton's interpreter patches triton.language anew at every call of a helper.

    The launch has done that for helpers of ours, and once is enough for those of Triton's own standard library.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    patched = set()

    def call(self, *args, **kwargs):
        module = self.fn.__module__
        if module.startswith("triton.") and module not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(module)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
