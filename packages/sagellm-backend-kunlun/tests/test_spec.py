"""The probe of ``kunlun`` on made-up machines: XPUs, and which Paddle is installed."""

from __future__ import annotations

import os
import platform
import sys

import pytest

from sagellm_backend import frameworks
from sagellm_backend.kunlun.spec import SPEC, probe
from sagellm_backend.spec import ProbeState


class Machine:
    """An XPU machine on which everything is in order, once it has nodes."""

    def __init__(self, root):
        self.root = root
        self.distributions = {}
        self.modules = {"paddle"}

    def add_nodes(self, count):
        self.distributions = {"paddlepaddle-xpu": "3.3.0"}
        (self.root / "dev").mkdir()
        (self.root / "dev/xpuctrl").touch()
        for index in range(count):
            (self.root / f"dev/xpu{index}").touch()

    def runs_on(self, monkeypatch, version, processor):
        monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
        monkeypatch.setattr(platform, "machine", lambda: processor)

    def version_of(self, name):
        return self.distributions.get(name)

    def probe(self, **environ):
        return probe(self.root, environ)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    made = Machine(tmp_path)
    monkeypatch.setattr(frameworks, "version_of", made.version_of)
    monkeypatch.setattr(frameworks, "is_installed", lambda module: module in made.modules)
    made.runs_on(monkeypatch, (3, 10), "x86_64")
    return made


def test_the_spec():
    assert SPEC.names == ("kunlun", "kunlun_xpu", "xpu")
    assert (SPEC.device_type, SPEC.priority, SPEC.array_framework) == ("xpu", 200, "paddle")


def test_a_machine_without_an_xpu(machine):
    answer = machine.probe()
    assert answer.state is ProbeState.ABSENT
    assert answer.reason == "no Kunlun XPU: /dev/xpu0 does not exist"
    assert answer.remedy


def test_a_whole_stack_is_available(machine):
    machine.add_nodes(8)
    answer = machine.probe()
    assert answer.state is ProbeState.AVAILABLE
    assert [device.name for device in answer.devices] == ["Kunlun XPU"] * 8


def test_an_xpu_build_without_a_device_says_so(machine):
    machine.distributions = {"paddlepaddle-xpu": "3.3.0"}
    answer = machine.probe()
    assert answer.state is ProbeState.ABSENT
    assert answer.reason.startswith("paddlepaddle-xpu 3.3.0 is installed, and there is no Kunlun")
    assert "/dev/xpuctrl" in answer.remedy


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


@pytest.mark.parametrize(("version", "processor"), [((3, 11), "x86_64"), ((3, 10), "aarch64")])
@pytest.mark.parametrize("distributions", [{}, {"paddlepaddle": "3.3.1"}])
def test_a_python_without_a_wheel_is_told_before_pip_fails(
    machine, monkeypatch, version, processor, distributions
):
    machine.add_nodes(1)
    machine.distributions, machine.modules = distributions, set(distributions)
    machine.runs_on(monkeypatch, version, processor)
    answer = machine.probe()
    assert answer.state is ProbeState.BROKEN
    assert "Python 3.10 on x86_64: pip install paddlepaddle-xpu -i" in answer.remedy
    if not distributions:
        assert f"no wheel for Python {version[0]}.{version[1]} on {processor}" in answer.reason


@pytest.mark.parametrize(
    ("value", "names"),
    [("cpu", ["cpu:0"]), ("sim:0,sim:1", ["sim:0", "sim:1"]), (" sim:0 ", ["sim:0"])],
)
def test_places_other_than_xpus_are_simulations(machine, value, names):
    answer = machine.probe(SAGELLM_KUNLUN_PLACES=value)
    assert answer.state is ProbeState.AVAILABLE
    assert [device.name for device in answer.devices] == [f"Paddle place {name}" for name in names]
    assert {device.facts["level"] for device in answer.devices} == {"L1"}


def test_places_need_a_paddle(machine):
    machine.modules = set()
    answer = machine.probe(SAGELLM_KUNLUN_PLACES="cpu")
    assert answer.state is ProbeState.BROKEN
    assert answer.reason == "SAGELLM_KUNLUN_PLACES is set: Paddle is not installed"
    assert answer.remedy == "pip install paddlepaddle==3.3.1"


@pytest.mark.parametrize(
    "value", ["sim", "sim:1", "sim:0,sim:0", "sim:0,other:1", "cpu:0,cpu:1", "sim:0,", "Sim:0", ","]
)
def test_what_names_no_places_is_broken(machine, value):
    answer = machine.probe(SAGELLM_KUNLUN_PLACES=value)
    assert answer.state is ProbeState.BROKEN
    assert f"SAGELLM_KUNLUN_PLACES={value!r}" in answer.reason
    assert "kunlun_sim:0,kunlun_sim:1" in answer.remedy


def test_a_node_that_may_not_be_opened_is_broken(machine, monkeypatch):
    machine.add_nodes(1)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    answer = machine.probe()
    assert answer.state is ProbeState.BROKEN
    assert "/dev/xpu0" in answer.reason
