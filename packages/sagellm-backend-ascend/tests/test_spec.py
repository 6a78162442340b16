"""The probe of ``ascend`` on made-up machines: NPUs, CANN, torch and torch_npu."""

from __future__ import annotations

import os

import pytest

from sagellm_backend import frameworks
from sagellm_backend.ascend.spec import SPEC, probe
from sagellm_backend.errors import CapabilityError
from sagellm_backend.frameworks import TorchBuild
from sagellm_backend.spec import ProbeState

HOME = "/usr/local/Ascend/ascend-toolkit/latest"


class Machine:
    """An NPU machine on which everything is in order, once it has nodes."""

    def __init__(self, root):
        self.root = root
        self.torch = TorchBuild("2.7.1+cpu")
        self.npu = "2.7.1.post2"
        self.environ = {"ASCEND_HOME_PATH": HOME}
        (root / HOME.lstrip("/")).mkdir(parents=True)

    def add_nodes(self, count):
        (self.root / "dev").mkdir()
        for index in range(count):
            (self.root / f"dev/davinci{index}").touch()

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


def test_building_is_a_typed_refusal_in_this_release():
    with pytest.raises(CapabilityError, match=r"ascend.*no provider yet") as caught:
        SPEC()
    assert "SAGELLM_BACKEND=cpu" in caught.value.hint


def test_a_machine_without_an_npu(machine):
    answer = machine.probe()
    assert answer.state is ProbeState.ABSENT
    assert answer.reason == "no Ascend NPU: /dev/davinci0 does not exist"
    assert answer.remedy


def test_a_whole_stack_is_seen_and_not_yet_served(machine):
    machine.add_nodes(8)
    info = machine.root / "usr/local/Ascend/driver/version.info"
    info.parent.mkdir()
    info.write_text("Version=24.1.0\nascendhal_version=7.35\n")
    answer = machine.probe()
    assert answer.state is ProbeState.UNSUPPORTED
    assert "8 x Ascend NPU seen" in answer.reason
    assert [device.index for device in answer.devices] == list(range(8))
    assert answer.devices[0].facts == {"driver": "24.1.0"}


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
    ],
)
def test_without_cann_it_is_broken(machine, environ, said):
    machine.add_nodes(1)
    machine.environ = environ
    answer = machine.probe()
    assert answer.state is ProbeState.BROKEN
    assert said in answer.reason
    assert "set_env.sh" in answer.remedy


def test_the_older_name_of_cann_s_home_counts(machine):
    machine.add_nodes(1)
    machine.environ = {"ASCEND_TOOLKIT_HOME": HOME}
    assert machine.probe().state is ProbeState.UNSUPPORTED


@pytest.mark.parametrize(
    ("torch", "npu", "said", "remedy"),
    [
        (None, "2.7.1", "torch is not installed", "pip install torch torch_npu"),
        ("2.7.1+cpu", None, "torch_npu is not installed", "torch_npu==2.7.1.*"),
        ("2.13.0", "2.7.1.post2", "2.7.1.post2 does not fit torch 2.13.0", "torch_npu==2.13.0.*"),
        ("2.7.0", "2.7.1", "does not fit", "torch_npu==2.7.0.*"),
    ],
)
def test_a_torch_that_does_not_fit_is_broken(machine, torch, npu, said, remedy):
    machine.add_nodes(1)
    machine.torch = TorchBuild(torch) if torch else None
    machine.npu = npu
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
