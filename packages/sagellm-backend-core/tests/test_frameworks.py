"""What is installed is read from files; nothing is imported."""

from __future__ import annotations

import sys

import pytest

from sagellm_backend import frameworks
from sagellm_backend.frameworks import TorchBuild

VERSION = """\
from typing import Optional

__all__ = ['__version__', 'debug', 'cuda', 'hip']
__version__ = '2.13.0+{local}'
debug = False
cuda: Optional[str] = {cuda!r}
git_version = 'cuda = fake'
hip: Optional[str] = {hip!r}
"""


@pytest.fixture
def torch_at(tmp_path, monkeypatch):
    """Put a torch in front that must not be imported."""

    def install(version_text):
        package = tmp_path / "torch"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('torch was imported')")
        if version_text is not None:
            (package / "version.py").write_text(version_text)
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


@pytest.mark.parametrize(
    ("local", "cuda", "hip", "words"),
    [
        ("cpu", None, None, "torch 2.13.0+cpu (CPU build)"),
        ("cu128", "12.8", None, "torch 2.13.0+cu128 (built for CUDA 12.8)"),
        ("rocm6.2", None, "6.2.4", "torch 2.13.0+rocm6.2 (built for ROCm/HIP 6.2.4)"),
    ],
)
def test_torch_s_build_is_read_from_its_version_file(torch_at, local, cuda, hip, words):
    torch_at(VERSION.format(local=local, cuda=cuda, hip=hip))
    build = frameworks.torch_build()
    assert build == TorchBuild(f"2.13.0+{local}", cuda, hip)
    assert build.words == words
    assert build.release == (2, 13)
    assert "torch" not in sys.modules


def test_a_torch_without_a_version_file_still_counts(torch_at, monkeypatch):
    torch_at(None)
    monkeypatch.setattr(frameworks, "version_of", lambda name: None)
    build = frameworks.torch_build()
    assert build.words == "torch of unknown version (CPU build)"
    assert build.release == ()


def test_no_torch_is_none(monkeypatch):
    monkeypatch.setattr(frameworks, "find_spec", lambda name: None)
    assert frameworks.torch_build() is None


def test_a_half_imported_module_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", type(sys)("torch"))
    sys.modules["torch"].__spec__ = None
    assert frameworks.torch_build() is None
    assert not frameworks.is_installed("torch")


def test_modules_and_distributions():
    assert frameworks.is_installed("numpy")
    assert not frameworks.is_installed("no_such_module_at_all")
    assert frameworks.version_of("numpy")
    assert frameworks.version_of("no-such-distribution") is None
