"""The probe of ``kunlun`` on made-up machines: XPUs, and which Paddle is installed."""

from __future__ import annotations

import os

import pytest

from sagellm_backend import frameworks
from sagellm_backend.errors import CapabilityError
from sagellm_backend.kunlun.spec import SPEC, probe
from sagellm_backend.spec import ProbeState


class Machine:
    """An XPU machine on which everything is in order, once it has nodes."""

    def __init__(self, root):
        self.root = root
        self.distributions = {"paddlepaddle-xpu": "3.3.0"}
        self.modules = {"paddle"}

    def add_nodes(self, count):
        (self.root / "dev").mkdir()
        (self.root / "dev/xpuctrl").touch()
        for index in range(count):
            (self.root / f"dev/xpu{index}").touch()

    def version_of(self, name):
        return self.distributions.get(name)

    def probe(self, **environ):
        return probe(self.root, environ)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path)
    monkeypatch.setattr(frameworks, "version_of", made.version_of)
    monkeypatch.setattr(frameworks, "is_installed", lambda module: module in made.modules)
    return made


def test_the_spec():
    assert SPEC.names == ("kunlun", "kunlun_xpu", "xpu")
    assert (SPEC.device_type, SPEC.priority, SPEC.array_framework) == ("xpu", 200, "paddle")


def test_building_is_a_typed_refusal_in_this_release():
    with pytest.raises(CapabilityError, match=r"kunlun.*no provider yet") as caught:
        SPEC()
    assert "SAGELLM_BACKEND=cpu" in caught.value.hint


def test_a_machine_without_an_xpu(machine):
    answer = machine.probe()
    assert answer.state is ProbeState.ABSENT
    assert answer.reason == "no Kunlun XPU: /dev/xpu0 does not exist"
    assert answer.remedy


def test_a_whole_stack_is_seen_and_not_yet_served(machine):
    machine.add_nodes(8)
    answer = machine.probe()
    assert answer.state is ProbeState.UNSUPPORTED
    assert "8 x Kunlun XPU seen" in answer.reason
    assert len(answer.devices) == 8


def test_visible_devices_choose_and_hide(machine):
    machine.add_nodes(4)
    assert len(machine.probe(XPU_VISIBLE_DEVICES="1,3").devices) == 2
    answer = machine.probe(XPU_VISIBLE_DEVICES="")
    assert answer.state is ProbeState.ABSENT
    assert "XPU_VISIBLE_DEVICES='' hides /dev/xpu0" in answer.reason


@pytest.mark.parametrize(
    ("distributions", "modules", "said"),
    [
        ({}, set(), "paddlepaddle-xpu is not installed"),
        ({"paddlepaddle-xpu": "3.3.0"}, set(), "paddlepaddle-xpu is not installed"),
        ({"paddlepaddle": "3.3.1"}, {"paddle"}, "paddlepaddle 3.3.1 cannot drive an XPU"),
        (
            {"paddlepaddle": "3.3.1", "paddlepaddle-xpu": "3.3.0"},
            {"paddle"},
            "paddlepaddle 3.3.1 and paddlepaddle-xpu 3.3.0 overwrite one another",
        ),
        (
            {},
            {"torch_xmlir"},
            "xpytorch (torch_xmlir) is installed, and this backend speaks Paddle",
        ),
    ],
)
def test_another_stack_than_paddle_xpu_is_broken(machine, distributions, modules, said):
    machine.add_nodes(1)
    machine.distributions, machine.modules = distributions, modules
    answer = machine.probe()
    assert answer.state is ProbeState.BROKEN
    assert said in answer.reason
    assert "pip install paddlepaddle-xpu -i" in answer.remedy


def test_a_node_that_may_not_be_opened_is_broken(machine, monkeypatch):
    machine.add_nodes(1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    answer = machine.probe()
    assert answer.state is ProbeState.BROKEN
    assert "/dev/xpu0" in answer.reason
