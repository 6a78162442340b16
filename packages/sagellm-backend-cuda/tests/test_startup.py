"""What a driver that does not start is called, on made-up modules and with torch's own words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sagellm_backend import frameworks
from sagellm_backend.cuda import startup
from sagellm_backend.cuda.provider import create_cuda_backend, create_dcu_backend
from sagellm_backend.errors import InvalidArgumentError, OutOfMemoryError, UnavailableError
from sagellm_backend.torch_support.errors import check


class Module:
    """What startup asks of torch.cuda."""

    def __init__(self, init=None, count=1, name="NVIDIA H200"):
        self.fault, self.count, self.name = init, count, name

    def init(self):
        if self.fault:
            raise self.fault

    def device_count(self):
        return self.count

    def get_device_name(self, device):
        return self.name

    def synchronize(self, device):
        return None


@pytest.fixture
def built(monkeypatch):
    """Says what torch was built for."""

    def say(cuda=None, hip=None, modules=()):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip, raising=False)
        monkeypatch.setattr(frameworks, "is_installed", lambda module: module in modules)

    say(cuda="13.0")
    return say


def refused(error, call, *arguments):
    with pytest.raises(error) as caught:
        call(*arguments)
    assert caught.value.hint
    return caught.value


STARTS = [
    (
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU",
        "no NVIDIA driver",
        "--gpus all",
    ),
    (
        "The NVIDIA driver on your system is too old (found version 11040). Please update",
        "found version 11040",
        "Update the driver",
    ),
    (
        "Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display "
        "driver / cuda driver combination",
        "different versions",
        "Restart",
    ),
    (
        "Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was "
        "attempted on non supported HW",
        "cuda-compat",
        "LD_LIBRARY_PATH",
    ),
    (
        "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        "fabric",
        "nvidia-fabricmanager",
    ),
    ("CUDA unknown error - this may be due to an incorrectly set up", "started", "nvidia-uvm"),
    ("Cannot re-initialize CUDA in forked subprocess. To use CUDA", "forked", "spawn"),
    ("something nobody has seen", "something nobody has seen", "doctor"),
]


@pytest.mark.parametrize(("said", "meaning", "remedy"), STARTS, ids=[row[1] for row in STARTS])
def test_each_way_in_which_a_driver_does_not_start(built, said, meaning, remedy):
    error = refused(UnavailableError, startup.begin, Module(RuntimeError(said)), "cuda", "cuda")
    assert meaning in error.message
    assert "'cuda'" in error.message
    assert remedy in error.hint


def test_no_two_faults_share_their_words():
    assert len({(meaning, remedy) for _, meaning, remedy in STARTS}) == len(STARTS)


@pytest.mark.parametrize(
    "module", [Module(RuntimeError("No CUDA GPUs are available")), Module(count=0)]
)
def test_hidden_devices_name_the_variable(built, monkeypatch, module):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    error = refused(UnavailableError, startup.begin, module, "cuda", "cuda")
    assert "CUDA_VISIBLE_DEVICES='-1' hides every device" in error.message
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    error = refused(UnavailableError, startup.begin, module, "cuda", "cuda")
    assert "the driver shows none" in error.message


@pytest.mark.parametrize("variable", startup.VARIABLES["hip"])
def test_hidden_dcus_name_their_variable(built, monkeypatch, variable):
    built(hip="6.2")
    for name in startup.VARIABLES["hip"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "")
    error = refused(UnavailableError, startup.begin, Module(count=0), "hip", "dcu")
    assert f"{variable}='' hides" in error.message


@pytest.mark.parametrize(
    ("said", "kind", "meaning"),
    [
        ("CUDA error: all CUDA-capable devices are busy or unavailable", UnavailableError, "busy"),
        ("CUDA error: no kernel image is available for execution", UnavailableError, "generation"),
        ("HIP error: invalid device function", UnavailableError, "generation"),
        ("CUDA error: out of memory", OutOfMemoryError, "full"),
    ],
)
def test_each_way_in_which_a_device_cannot_be_used(built, monkeypatch, said, kind, meaning):
    def fail(device):
        raise RuntimeError(said)

    monkeypatch.setattr(startup, "run_kernel", fail)
    error = refused(kind, startup.occupy, Module(), "cuda:0", "cuda", "cuda")
    assert meaning in error.message
    assert "cuda:0" in error.message


def test_a_full_device_is_out_of_memory_in_torch_s_own_type_too(built, monkeypatch):
    def fail(device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    monkeypatch.setattr(startup, "run_kernel", fail)
    refused(OutOfMemoryError, startup.occupy, Module(), "cuda:0", "cuda", "cuda")


def runtime_errors(group):
    """(number, text) of what the runtime says."""
    lines = Path(__file__).with_name("runtime_errors.txt").read_text().splitlines()
    rows = [line.split(" ", 2) for line in lines if not line.startswith("#")]
    return [(int(number), text) for kind, number, text in rows if kind == group]


def test_each_error_of_the_runtime_at_the_start_has_a_meaning_of_its_own(built, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    meanings = {}
    for number, text in runtime_errors("start"):
        error = RuntimeError(f"Unexpected error from cudaGetDeviceCount(). Error {number}: {text}")
        found = refused(UnavailableError, startup.begin, Module(error), "cuda", "cuda")
        assert "doctor" not in found.hint, text
        meanings.setdefault(found.message.partition("(")[0], []).append(number)
    assert len(meanings) >= len(runtime_errors("start")) - 3, meanings


@pytest.mark.parametrize(("number", "text"), runtime_errors("lost"))
def test_a_device_that_is_lost_says_to_start_another_process(built, monkeypatch, number, text):
    def fail(device):
        raise RuntimeError(f"CUDA error: {text}")

    monkeypatch.setattr(startup, "run_kernel", fail)
    error = refused(UnavailableError, startup.occupy, Module(), "cuda:0", "cuda", "cuda")
    assert "start another" in error.hint
    with pytest.raises(UnavailableError) as caught, check("a call", "cuda:0"):
        fail("cuda:0")
    assert "start another" in caught.value.hint


def test_an_allocation_that_fails_is_no_lost_device():
    ((_, text),) = runtime_errors("memory")
    with pytest.raises(OutOfMemoryError), check("a call", "cuda:0"):
        raise RuntimeError(f"CUDA error: {text}")


@pytest.mark.parametrize("name", ["MTT S4000", "Kunlun P800", "P800 OAM"])
def test_a_poser_is_refused_by_its_name(built, name):
    error = refused(UnavailableError, startup.occupy, Module(name=name), "cuda:0", "cuda", "cuda")
    assert name in error.message


@pytest.mark.parametrize(
    ("kind", "build", "said", "hint"),
    [
        ("cuda", {}, "(CPU build)", "Install the torch"),
        ("cuda", {"hip": "6.2"}, "(built for ROCm/HIP 6.2)", "serves backend 'dcu'"),
        ("hip", {"cuda": "13.0"}, "(built for CUDA 13.0)", "serves backend 'cuda'"),
        ("hip", {}, "(CPU build)", "Install the torch"),
    ],
)
def test_a_torch_of_another_build_is_refused(built, kind, build, said, hint):
    built(**build)
    error = refused(UnavailableError, startup.begin, Module(), kind, "it")
    assert said in error.message
    assert hint in error.hint


def test_xpytorch_is_refused_by_name(built):
    built(cuda="11.8", modules=("torch_xmlir",))
    error = refused(UnavailableError, startup.begin, Module(), "cuda", "cuda")
    assert "torch_xmlir makes torch.cuda mean other hardware" in error.message


def test_a_whole_stack_starts(built, monkeypatch):
    monkeypatch.setattr(startup, "run_kernel", lambda device: None)
    startup.begin(Module(), "cuda", "cuda")
    startup.occupy(Module(), "cuda:0", "cuda", "cuda")
    built(hip="6.2")
    startup.begin(Module(), "hip", "dcu")


@pytest.mark.parametrize("create", [create_cuda_backend, create_dcu_backend])
def test_with_this_torch_the_factories_refuse_and_say_which_build_it_is(built, create):
    built()
    error = refused(UnavailableError, create)
    assert f"torch {torch.__version__} (CPU build)" in error.message


def test_a_bad_config_is_refused_before_the_driver_is_started():
    with pytest.raises(InvalidArgumentError):
        create_cuda_backend({"device": "first"})
