"""What keeps torch_npu or the driver from starting, on made-up installations and modules."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from sagellm_backend import frameworks
from sagellm_backend.ascend import startup
from sagellm_backend.errors import OutOfMemoryError, UnavailableError
from sagellm_backend.frameworks import TorchBuild

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"
FAULTY = "raise ImportError('libhccl.so: cannot open shared object file: No such file')"


@pytest.fixture
def half_installed(tmp_path):
    """Makes an installation of torch_npu that says ``fault`` when it is imported.

    As the real one does, it is loaded by ``import torch``, and leaves a variable changed.
    """

    def build(fault, version=torch.__version__):
        module = tmp_path / "torch_npu"
        module.mkdir()
        text = f"import os\nos.environ['{AUTOLOAD}'] = '0'\nimport torch\n{fault}\n"
        module.joinpath("__init__.py").write_text(text + "def _autoload(): pass\n")
        info = tmp_path / "torch_npu-2.13.0.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Name: torch_npu\nVersion: {version}\n")
        info.joinpath("entry_points.txt").write_text("[torch.backends]\nt = torch_npu:_autoload\n")
        return tmp_path

    return build


def run(folder, script, **environ):
    kept = {name: value for name, value in os.environ.items() if name != AUTOLOAD}
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**kept, **environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_made_up_installation_breaks_torch_as_the_real_one_does(half_installed):
    done = run(half_installed(FAULTY), "import torch")
    assert done.returncode
    assert "Failed to load the backend extension" in done.stderr


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_without_cann_torch_can_be_imported_all_the_same(half_installed, before):
    script = f"""
        import os
        from sagellm_backend import get_provider
        from sagellm_backend.errors import UnavailableError
        from sagellm_backend.ascend.spec import SPEC
        before = dict(os.environ)
        try:
            SPEC()
        except UnavailableError as error:
            print(error)
        assert dict(os.environ) == before, os.environ.get("{AUTOLOAD}")
        import torch
        print(torch.ones(2).sum().item())
    """
    environ = {} if before is None else {AUTOLOAD: before}
    done = run(half_installed(FAULTY), script, **environ)
    assert done.returncode == 0, done.stderr
    assert "CANN's libraries are not where the loader looks" in done.stdout
    assert "set_env.sh" in done.stdout
    assert done.stdout.endswith("2.0\n")


def test_a_torch_npu_that_loads_leaves_the_environment_too(half_installed):
    script = f"""
        import os, sys
        from sagellm_backend.ascend import startup
        before = dict(os.environ)
        startup.load()
        assert dict(os.environ) == before, os.environ.get("{AUTOLOAD}")
        print({{"torch", "torch_npu"}} <= set(sys.modules))
    """
    done = run(half_installed("pass"), script)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_another_version_is_refused_before_anything_is_imported(half_installed):
    script = """
        import sys
        from sagellm_backend.ascend import startup
        try:
            startup.load()
        except Exception as error:
            print(error)
        assert not {"torch", "torch_npu"} & set(sys.modules)
    """
    done = run(half_installed("pass", version="2.7.1.post2"), script)
    assert "torch_npu 2.7.1.post2 does not fit torch" in done.stdout
    assert done.returncode == 0, done.stderr


def test_a_torch_built_for_cuda_is_refused_before_it_is_imported(monkeypatch):
    build = TorchBuild("2.13.0+cu130", cuda="13.0")
    monkeypatch.setattr(frameworks, "torch_build", lambda: build)
    with pytest.raises(UnavailableError, match="cannot share a process with torch_npu") as caught:
        startup.load()
    assert "whl/cpu" in caught.value.hint


class Module:
    """What startup asks of torch.npu."""

    def __init__(self, fault=None, count=1):
        self.fault, self.count = fault, count

    def device_count(self):
        if self.fault:
            raise RuntimeError(self.fault)
        return self.count

    def get_soc_version(self):
        return 222

    def get_device_name(self, device):
        return "Ascend910B2"

    def synchronize(self, device):
        if self.fault:
            raise RuntimeError(self.fault)


ACL = "Initialize:build/CMakeFiles/torch_npu.dir/compiler_depend.ts NPU function error: {}"
STARTS = [
    ("aclInit, error code is 507008", "CANN does not know this chip", "CANN release"),
    ("aclrtSetDevice, error code is 507033", "busy or does not answer", "npu-smi info"),
    ("aclrtSetDevice, error code is 207006", "may not use the device", "HwHiAiUser"),
    ("aclrtSetDevice, error code is 207004", "no such device", "ASCEND_RT_VISIBLE_DEVICES"),
    ("aclrtSetDevice, error code is 107001", "no such device", "npu-smi"),
    ("aclrtSetDevice, error code is 507899", "a fault of its own", "health"),
    ("x.so: undefined symbol: aclrtFoo", "made for another CANN", "CANN release"),
    ("Two accelerators cannot be used at the same time", "another accelerator", "whl/cpu"),
    ("Only a single TORCH_LIBRARY can be used", "has failed in this process", AUTOLOAD),
    ("libatb.so: cannot open shared object file", "NNAL", "nnal/atb/set_env.sh"),
    ("something else", "something else", "doctor"),
]


@pytest.mark.parametrize(("said", "meaning", "remedy"), STARTS)
def test_a_driver_that_does_not_start_is_named(said, meaning, remedy):
    with pytest.raises(UnavailableError, match=meaning) as caught:
        startup.begin(Module(ACL.format(said)))
    assert remedy in caught.value.hint
    assert said.split("\n")[0] in str(caught.value)


def test_every_fault_has_a_meaning_of_its_own():
    known = [meaning for _, meaning, _ in startup._FAULTS]
    assert len(set(known)) == len(known)
    assert all(remedy for _, _, remedy in startup._FAULTS)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("aclrtMalloc, error code is 207001", OutOfMemoryError),
        ("NPU out of memory. Tried to allocate 2.00 MiB", OutOfMemoryError),
        ("aclrtSynchronizeDevice, error code is 507046", UnavailableError),
    ],
)
def test_a_device_that_is_full_or_busy_is_named(said, error):
    with pytest.raises(error, match="cannot use cpu") as caught:
        startup.occupy(Module(said), "cpu")
    assert caught.value.hint


def test_no_device_is_said_with_what_hides_it(monkeypatch):
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UnavailableError, match="the driver shows none"):
        startup.begin(Module(count=0))
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "9")
    with pytest.raises(UnavailableError, match=r"ASCEND_RT_VISIBLE_DEVICES='9' hides"):
        startup.begin(Module(count=0))


def test_a_device_in_order_is_of_its_family():
    assert startup.begin(Module()).name == "A2"
    startup.occupy(Module(), "cpu")
