"""The facade: every public name loads, or says which distribution to install."""

import importlib.abc
import importlib.util
import subprocess
import sys

import pytest

import sagellm_backend
from sagellm_backend.errors import PackageMissingError

NAMES = [name for name in sagellm_backend.__all__ if name != "__version__"]
CPU_NAMES = ["CPUBackendProvider", "create_cpu_backend"]


class Absent(importlib.abc.MetaPathFinder):
    """An installation without a package."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, fullname, path=None, target=None):
        if f"{fullname}.".startswith(f"{self.package}."):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


@pytest.fixture
def without(monkeypatch):
    """``without(module)``: forget what is loaded of it and let nobody find it again."""

    def forget(module):
        for loaded in list(sys.modules):
            if f"{loaded}.".startswith(f"{module}."):
                monkeypatch.delitem(sys.modules, loaded)
        for name in CPU_NAMES:
            monkeypatch.delitem(vars(sagellm_backend), name, raising=False)
        monkeypatch.delattr(sagellm_backend, "cpu", raising=False)
        monkeypatch.setattr(sys, "meta_path", [Absent(module), *sys.meta_path])

    return forget


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_loads_or_names_its_distribution(name):
    if name in CPU_NAMES and importlib.util.find_spec("sagellm_backend.cpu") is None:
        with pytest.raises(PackageMissingError, match="sagellm-backend-cpu"):
            getattr(sagellm_backend, name)
        return
    value = getattr(sagellm_backend, name)
    assert vars(sagellm_backend)[name] is value


@pytest.mark.parametrize("name", CPU_NAMES)
def test_a_name_of_a_missing_distribution_says_what_to_install(without, name):
    without("sagellm_backend.cpu")
    with pytest.raises(PackageMissingError, match="pip install sagellm-backend-cpu") as caught:
        getattr(sagellm_backend, name)
    assert isinstance(caught.value, ImportError)
    with pytest.raises(ImportError):
        exec(f"from sagellm_backend import {name}")


@pytest.mark.parametrize("name", ["nothing", "Provider", "_HOME", "cuda_"])
def test_unknown_names_are_attribute_errors(name):
    with pytest.raises(AttributeError, match=name):
        getattr(sagellm_backend, name)
    assert not hasattr(sagellm_backend, name)


def test_dir_lists_what_is_public():
    assert dir(sagellm_backend) == sorted(sagellm_backend.__all__)


def test_the_import_loads_neither_numpy_nor_a_framework():
    code = """
import sys, sagellm_backend
heavy = {"numpy", "ml_dtypes", "torch", "paddle", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_names_of_core_load_no_framework():
    code = f"""
import sys, sagellm_backend
for name in {sorted(set(NAMES) - set(CPU_NAMES))!r}:
    getattr(sagellm_backend, name)
heavy = {{"torch", "paddle", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
