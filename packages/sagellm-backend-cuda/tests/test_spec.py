"""The probes of ``cuda`` and ``dcu`` on made-up machines: what is there, and what only looks so."""

from __future__ import annotations

import os

import pytest

from sagellm_backend import frameworks
from sagellm_backend.cuda.spec import DCU_SPEC, SPEC, probe_cuda, probe_dcu
from sagellm_backend.frameworks import TorchBuild
from sagellm_backend.spec import ProbeState

CUDA_TORCH = TorchBuild("2.13.0", cuda="12.8")
HIP_TORCH = TorchBuild("2.5.1", hip="6.2.4")
CPU_TORCH = TorchBuild("2.13.0+cpu")

INFORMATION = """\
Model: \t\t NVIDIA H200
IRQ:   \t\t 77
GPU UUID: \t GPU-{uuid}
Bus Location: \t 0000:0{minor}:00.0
Device Minor: \t {minor}
"""
VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23\n"


class Machine:
    """A file tree, a torch and other modules, as a probe sees them."""

    def __init__(self, root, monkeypatch):
        self.root = root
        self.torch = None
        self.modules = set()
        monkeypatch.setattr(frameworks, "torch_build", lambda: self.torch)
        monkeypatch.setattr(frameworks, "is_installed", lambda module: module in self.modules)

    def write(self, path, text=""):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def add_nvidia(self, *minors, proc=True):
        self.write("proc/driver/nvidia/version", VERSION)
        for minor in minors:
            self.write(f"dev/nvidia{minor}")
            if proc:
                text = INFORMATION.format(minor=minor, uuid=f"{minor}abc")
                self.write(f"proc/driver/nvidia/gpus/0000:0{minor}:00.0/information", text)

    def add_dcu(self, *, cards=1):
        self.write("dev/kfd")
        self.write("opt/hyhal/version")
        for card in range(cards):
            self.write(f"dev/dri/renderD{128 + card}")
            path = f"sys/class/drm/renderD{128 + card}/device/mem_info_vram_total"
            self.write(path, f"{64 * 2**30}\n")

    def cuda(self, **environ):
        return probe_cuda(self.root, environ)

    def dcu(self, **environ):
        return probe_dcu(self.root, environ)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def test_the_specs():
    assert (SPEC.name, SPEC.device_type, SPEC.priority) == ("cuda", "cuda", 400)
    assert (DCU_SPEC.name, DCU_SPEC.device_type, DCU_SPEC.priority) == ("dcu", "cuda", 390)
    assert not set(SPEC.names) & set(DCU_SPEC.names)


def test_a_machine_without_a_card(machine):
    answer = machine.cuda()
    assert answer.state is ProbeState.ABSENT
    assert answer.reason == "no NVIDIA device: /dev/nvidia0 does not exist"
    assert "driver" in answer.remedy
    answer = machine.dcu()
    assert answer.state is ProbeState.ABSENT
    assert "/opt/hyhal" in answer.reason


def test_a_whole_stack_is_available(machine):
    machine.add_nvidia(0, 1)
    machine.torch = CUDA_TORCH
    answer = machine.cuda()
    assert answer.state is ProbeState.AVAILABLE
    assert [device.name for device in answer.devices] == ["NVIDIA H200"] * 2
    assert [device.index for device in answer.devices] == [0, 1]
    assert answer.devices[1].facts == {
        "uuid": "GPU-1abc",
        "bus": "0000:01:00.0",
        "driver": "570.86.15",
    }


def test_cards_are_matched_to_nodes_by_minor(machine):
    """A container may hold /dev/nvidia1 alone while /proc lists every card of the host."""
    machine.add_nvidia(0, 1)
    (machine.root / "dev/nvidia0").unlink()
    machine.torch = CUDA_TORCH
    (device,) = machine.cuda().devices
    assert (device.index, device.facts["uuid"]) == (0, "GPU-1abc")


def test_a_card_without_proc_has_a_general_name(machine):
    machine.add_nvidia(0, proc=False)
    machine.torch = CUDA_TORCH
    (device,) = machine.cuda().devices
    assert device.name == "NVIDIA GPU"
    assert device.facts == {"driver": "570.86.15"}


def test_wsl_has_a_card_without_nodes(machine):
    machine.write("usr/lib/wsl/lib/libcuda.so.1")
    machine.torch = CUDA_TORCH
    answer = machine.cuda()
    assert answer.state is ProbeState.AVAILABLE
    assert len(answer.devices) == 1


@pytest.mark.parametrize(
    ("driver", "cuda", "needed"),
    [
        ("570.86.15", "13.0", "580.65.6"),
        ("570.86.15", "12.8", None),
        ("520.61.05", "12.1", "525.60.13"),
        ("470.82.01", "11.8", None),
        ("580.65.06", "13.0", None),
        ("570.86.15", "14.0", None),
    ],
)
def test_a_driver_too_old_for_this_torch_is_broken_with_both_numbers(machine, driver, cuda, needed):
    machine.add_nvidia(0)
    machine.write("proc/driver/nvidia/version", VERSION.replace("570.86.15", driver))
    machine.torch = TorchBuild("2.13.0", cuda=cuda)
    answer = machine.cuda()
    assert answer.state is (ProbeState.BROKEN if needed else ProbeState.AVAILABLE)
    if needed:
        assert f"driver {driver} is too old" in answer.reason
        assert needed in answer.reason
        assert needed in answer.remedy
        machine.write("usr/local/cuda-13.0/compat/libcuda.so.1")
        assert machine.cuda().state is ProbeState.AVAILABLE


@pytest.mark.parametrize(
    ("vendor", "kind", "state"),
    [
        ("0x10de", "0x030200", ProbeState.BROKEN),
        ("0x10de", "0x030000", ProbeState.BROKEN),
        ("0x10de", "0x040300", ProbeState.ABSENT),
        ("0x8086", "0x030000", ProbeState.ABSENT),
    ],
)
def test_a_card_on_the_bus_without_a_driver_is_broken(machine, vendor, kind, state):
    machine.write("sys/bus/pci/devices/0000:41:00.0/vendor", f"{vendor}\n")
    machine.write("sys/bus/pci/devices/0000:41:00.0/class", f"{kind}\n")
    machine.torch = CUDA_TORCH
    answer = machine.cuda()
    assert answer.state is state
    assert ("0000:41:00.0 has no driver" in answer.reason) is (state is ProbeState.BROKEN)


def test_a_container_without_devices_says_how_to_give_them(machine):
    machine.write("proc/driver/nvidia/version", VERSION)
    machine.write("sys/bus/pci/devices/0000:41:00.0/vendor", "0x10de")
    machine.write("sys/bus/pci/devices/0000:41:00.0/class", "0x030200")
    answer = machine.cuda()
    assert answer.state is ProbeState.ABSENT
    assert "570.86.15 is loaded" in answer.reason
    assert "--gpus all" in answer.remedy


@pytest.mark.parametrize("value", ["", "-1", "7"])
def test_cuda_visible_devices_may_hide_everything(machine, value):
    machine.add_nvidia(0)
    machine.torch = CUDA_TORCH
    answer = machine.cuda(CUDA_VISIBLE_DEVICES=value)
    assert answer.state is ProbeState.ABSENT
    assert f"CUDA_VISIBLE_DEVICES={value!r} hides /dev/nvidia0" in answer.reason
    assert "Unset" in answer.remedy


@pytest.mark.parametrize(
    ("value", "minors"), [("1", "1"), ("1,0", "10"), ("GPU-1", "1"), ("MIG-5", "01")]
)
def test_cuda_visible_devices_may_choose(machine, value, minors):
    machine.add_nvidia(0, 1)
    machine.torch = CUDA_TORCH
    devices = machine.cuda(CUDA_VISIBLE_DEVICES=value).devices
    assert [device.facts["uuid"][4] for device in devices] == list(minors)


@pytest.mark.parametrize(
    ("torch", "said"),
    [
        (None, "torch is not installed"),
        (CPU_TORCH, "torch 2.13.0+cpu (CPU build) cannot drive an NVIDIA GPU"),
        (HIP_TORCH, "torch 2.5.1 (built for ROCm/HIP 6.2.4) cannot drive an NVIDIA GPU"),
    ],
)
def test_a_torch_that_cannot_drive_the_card_is_broken(machine, torch, said):
    machine.add_nvidia(0)
    machine.torch = torch
    answer = machine.cuda()
    assert answer.state is ProbeState.BROKEN
    assert answer.reason == said
    assert "pip install" in answer.remedy
    assert answer.devices


@pytest.mark.parametrize("module", ["torch_xmlir", "kunlun_ops"])
def test_xpytorch_beside_a_card_is_broken_and_named(machine, module):
    machine.add_nvidia(0)
    machine.torch = CUDA_TORCH
    machine.modules = {module}
    answer = machine.cuda()
    assert answer.state is ProbeState.BROKEN
    assert module in answer.reason


def test_a_card_that_may_not_be_opened_is_broken(machine, monkeypatch):
    machine.add_nvidia(0)
    machine.torch = CUDA_TORCH
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    answer = machine.cuda()
    assert answer.state is ProbeState.BROKEN
    assert "/dev/nvidia0" in answer.reason


class TestPosers:
    """What says torch.cuda and is no NVIDIA card is called by its name."""

    def test_a_kunlun_xpu_behind_xpytorch_is_kunlun_s(self, machine):
        machine.write("dev/xpu0")
        machine.torch = TorchBuild("2.5.1+cu118", cuda="11.8")
        machine.modules = {"torch_xmlir"}
        answer = machine.cuda()
        assert answer.state is ProbeState.ABSENT
        assert "torch_xmlir presents a Kunlun XPU as torch.cuda" in answer.reason
        assert "'kunlun'" in answer.remedy

    def test_an_amd_card_is_not_served(self, machine):
        machine.write("dev/kfd")
        machine.torch = HIP_TORCH
        answer = machine.cuda()
        assert answer.state is ProbeState.UNSUPPORTED
        assert "AMD" in answer.reason
        assert machine.dcu().state is ProbeState.ABSENT

    def test_a_moore_threads_card_is_not_served(self, machine):
        machine.write("dev/mtgpu.0")
        answer = machine.cuda()
        assert answer.state is ProbeState.UNSUPPORTED
        assert "Moore Threads" in answer.reason

    def test_a_dcu_is_dcu_s(self, machine):
        machine.add_dcu()
        machine.torch = HIP_TORCH
        answer = machine.cuda()
        assert answer.state is ProbeState.ABSENT
        assert "'dcu'" in answer.remedy


class TestDCU:
    def test_a_whole_stack_is_available(self, machine):
        machine.add_dcu(cards=2)
        machine.torch = HIP_TORCH
        answer = machine.dcu()
        assert answer.state is ProbeState.AVAILABLE
        assert [device.name for device in answer.devices] == ["Hygon DCU"] * 2
        assert answer.devices[1].total_memory_bytes == 64 * 2**30

    @pytest.mark.parametrize(
        ("torch", "said"), [(None, "not installed"), (CUDA_TORCH, "cannot drive a DCU")]
    )
    def test_a_torch_that_is_not_built_for_hip_is_broken(self, machine, torch, said):
        machine.add_dcu()
        machine.torch = torch
        answer = machine.dcu()
        assert answer.state is ProbeState.BROKEN
        assert said in answer.reason
        assert "DTK" in answer.remedy

    @pytest.mark.parametrize(
        "variable", ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"]
    )
    def test_each_variable_may_hide_it(self, machine, variable):
        machine.add_dcu()
        machine.torch = HIP_TORCH
        answer = machine.dcu(**{variable: "-1"})
        assert answer.state is ProbeState.ABSENT
        assert variable in answer.reason
