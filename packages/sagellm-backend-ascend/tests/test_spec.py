"""The probe of ``ascend`` on made-up machines: NPUs, CANN, torch and torch_npu."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from sagellm_backend import DType, discovery, frameworks
from sagellm_backend.ascend.spec import SPEC, probe
from sagellm_backend.cli import main
from sagellm_backend.frameworks import TorchBuild
from sagellm_backend.spec import ProbeState

HOME = "/usr/local/Ascend/ascend-toolkit/latest"
A2, A310P = "0xd802", "0xd500"


class Machine:
    """An NPU machine on which everything is in order, once it has nodes."""

    def __init__(self, root):
        self.root = root
        self.torch = TorchBuild("2.13.0+cpu")
        self.npu = "2.13.0"
        self.environ = {"ASCEND_HOME_PATH": HOME}
        self.write(f"{HOME}/aarch64-linux/lib64/libascendcl.so", "")

    def write(self, path, text):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def add_nodes(self, count):
        for index in range(count):
            self.write(f"/dev/davinci{index}", "")

    def add_cards(self, *devices):
        for index, device in enumerate(devices):
            folder = f"/sys/bus/pci/devices/0000:{index:02x}:00.0"
            fields = {"vendor": "0x19e5", "device": device, "class": "0x120000"}
            for name, value in fields.items():
                self.write(f"{folder}/{name}", value + "\n")

    def add_driver(self):
        text = "Version=24.1.0\nascendhal_version=7.35\n"
        self.write("/usr/local/Ascend/driver/version.info", text)

    def probe(self, **environ):
        return probe(self.root, {**self.environ, **environ})


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path)
    monkeypatch.setattr(frameworks, "torch_build", lambda: made.torch)
    monkeypatch.setattr(frameworks, "version_of", lambda name: made.npu)
    monkeypatch.setattr(frameworks, "is_installed", lambda module: made.npu is not None)
    return made


def test_the_spec():
    assert SPEC.names == ("ascend", "ascend_cann", "npu", "pytorch-ascend")
    assert (SPEC.device_type, SPEC.priority, SPEC.array_framework) == ("npu", 300, "torch")


def test_a_machine_without_an_npu(machine):
    answer = machine.probe()
    assert answer.state is ProbeState.ABSENT
    assert answer.reason == "no Ascend NPU: /dev/davinci0 does not exist"
    assert answer.remedy


def test_a_whole_stack_is_available(machine):
    machine.add_nodes(8)
    machine.add_driver()
    machine.add_cards(*[A2] * 8)
    machine.write(f"{HOME}/aarch64-linux/ascend_toolkit_install.info", "version=9.1.0\n")
    answer = machine.probe()
    assert answer.state is ProbeState.AVAILABLE
    assert [device.index for device in answer.devices] == list(range(8))
    assert answer.devices[0].facts == {"driver": "24.1.0", "cann": "9.1.0", "family": "A2"}
    assert DType.BF16 in answer.devices[0].dtypes


@pytest.mark.parametrize("cards", [(A310P, A310P), (), (A2, A310P), ("0xd999",)])
def test_bf16_is_promised_only_where_the_card_is_known_to_have_it(machine, cards):
    machine.add_nodes(2)
    machine.add_cards(*cards)
    answer = machine.probe()
    assert answer.state is ProbeState.AVAILABLE
    assert answer.devices[0].dtypes == (DType.FP32, DType.FP16)


def test_a_card_without_a_driver_is_broken(machine):
    machine.add_cards(A2, A2)
    answer = machine.probe()
    assert answer.state is ProbeState.BROKEN
    assert "2 Ascend cards have no driver" in answer.reason
    assert "driver and firmware" in answer.remedy


def test_other_devices_of_the_vendor_are_no_npus(machine):
    machine.add_cards(A2)
    machine.write("/sys/bus/pci/devices/0000:00:00.0/class", "0x020000\n")
    assert machine.probe().state is ProbeState.ABSENT


def test_a_container_that_was_given_no_npu_says_so(machine):
    machine.add_driver()
    machine.add_cards(A2)
    answer = machine.probe()
    assert answer.state is ProbeState.ABSENT
    assert "driver 24.1.0 is installed and no NPU is given" in answer.reason
    assert "--device /dev/davinci0" in answer.remedy


def test_visible_devices_choose_and_hide(machine):
    machine.add_nodes(4)
    assert len(machine.probe(ASCEND_RT_VISIBLE_DEVICES="1,3").devices) == 2
    answer = machine.probe(ASCEND_RT_VISIBLE_DEVICES="")
    assert answer.state is ProbeState.ABSENT
    assert "ASCEND_RT_VISIBLE_DEVICES='' hides /dev/davinci0" in answer.reason


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "ASCEND_HOME_PATH is not set"),
        ({"ASCEND_HOME_PATH": ""}, "ASCEND_HOME_PATH is not set"),
        ({"ASCEND_HOME_PATH": "/gone"}, "ASCEND_HOME_PATH=/gone is not a directory"),
        ({"ASCEND_TOOLKIT_HOME": "/gone"}, "ASCEND_TOOLKIT_HOME=/gone is not a directory"),
        ({"ASCEND_HOME_PATH": "/dev"}, "CANN in ASCEND_HOME_PATH=/dev has no libascendcl.so"),
    ],
)
def test_without_cann_it_is_broken(machine, environ, said):
    machine.add_nodes(1)
    machine.environ = environ
    answer = machine.probe()
    assert answer.state is ProbeState.BROKEN
    assert said in answer.reason
    assert "CANN" in answer.remedy


def test_the_older_name_of_cann_s_home_counts(machine):
    machine.add_nodes(1)
    machine.environ = {"ASCEND_TOOLKIT_HOME": HOME}
    assert machine.probe().state is ProbeState.AVAILABLE


@pytest.mark.parametrize(
    ("torch", "npu", "said", "remedy"),
    [
        (None, "2.13.0", "torch is not installed", "pip install torch"),
        (TorchBuild("2.7.1+cpu"), None, "torch_npu is not installed", "torch_npu==2.7.1.*"),
        (
            TorchBuild("2.13.0"),
            "2.7.1.post2",
            "2.7.1.post2 does not fit torch 2.13.0",
            "torch_npu==2.13.0.*",
        ),
        (TorchBuild("2.7.0"), "2.7.1", "does not fit", "torch_npu==2.7.0.*"),
        (
            TorchBuild("2.13.0+cu130", cuda="13.0"),
            "2.13.0",
            "torch 2.13.0+cu130 (built for CUDA 13.0) cannot share a process with torch_npu",
            "torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu",
        ),
        (TorchBuild("2.13.0", hip="6.3"), "2.13.0", "cannot share a process", "whl/cpu"),
    ],
)
def test_a_torch_that_does_not_fit_is_broken(machine, torch, npu, said, remedy):
    machine.add_nodes(1)
    machine.torch, machine.npu = torch, npu
    answer = machine.probe()
    assert answer.state is ProbeState.BROKEN
    assert said in answer.reason
    assert remedy in answer.remedy


def test_a_node_that_may_not_be_opened_is_broken(machine, monkeypatch):
    machine.add_nodes(1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    answer = machine.probe()
    assert answer.state is ProbeState.BROKEN
    assert "HwHiAiUser" in answer.remedy


def test_probing_imports_no_framework_and_changes_no_variable():
    script = (
        "import os, sys; before = dict(os.environ)\n"
        "from sagellm_backend.ascend.spec import SPEC; SPEC.probe()\n"
        "assert dict(os.environ) == before\n"
        "print(sorted({'torch', 'torch_npu'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("change", "missing", "command"),
    [
        ({"npu": None}, "torch_npu is not installed", "pip install torch_npu==2.13.0.*"),
        ({"torch": None}, "torch is not installed", "pip install torch"),
        ({"environ": {}}, "CANN is not set up", "source /usr/local/Ascend/"),
    ],
)
def test_doctor_names_the_missing_piece_and_the_command(
    machine, monkeypatch, capsys, change, missing, command
):
    machine.add_nodes(1)
    for name, value in change.items():
        setattr(machine, name, value)
    spec = replace(SPEC, probe=machine.probe)
    monkeypatch.setattr("sagellm_backend.ascend.spec.SPEC", spec)
    monkeypatch.setattr(discovery, "_cache", {})
    status = main(["doctor", "--json"])
    said = json.loads(capsys.readouterr().out)["problems"]
    (problem,) = [item for item in said if item["what"].startswith("ascend")]
    assert status in (0, 1)
    assert missing in problem["what"]
    assert command in problem["remedy"]
