"""The command line: tables for people, data for programs, exit codes for both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sagellm_backend
from sagellm_backend import discovery, frameworks
from sagellm_backend.cli import doctor, main, tables
from sagellm_backend.devices import Sighting

SOURCE = Path(sagellm_backend.__file__).parents[1]

EXPLAINING = """
class Explanation:
    def __init__(self, static):
        self.static = static
    def to_dict(self):
        return {
            "operation": "rms_norm", "signature": "rms_norm(x, weight)", "meaning": "Scale x.",
            "static": {key: getattr(value, "value", value) for key, value in self.static.items()},
            "chosen": CHOSEN, "policy": "strict", "fallback": FALLBACK,
            "candidates": [
                {"name": "fused", "priority": 10, "supported": False, "reasons": ["[odd] size"]},
                {"name": "plain", "priority": 0, "supported": CHOSEN == "plain", "reasons": []},
            ],
        }
class Provider:
    name = "chip"
    def __init__(self, config=None):
        pass
    def explain(self, name, **static):
        from sagellm_backend.errors import OperatorNotFoundError
        if name != "rms_norm":
            raise OperatorNotFoundError(f"No operation {name!r}.", hint="Look again.")
        return Explanation(static)
    def _nothing(self, *args):
        return None
    capability = clear_cache = create_event = create_stream = get_kernel = _nothing
    kv_block_alloc = kv_block_copy = kv_block_free = kv_block_migrate = _nothing
    memory_stats = register_kernel = _nothing
"""


def run(capsys, *argv):
    """Exit status, standard output and standard error of one command."""
    try:
        status = main(argv)
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def chip(distributions, monkeypatch):
    """An environment with one explaining backend, on a machine without torch_npu."""
    monkeypatch.setattr(frameworks, "is_installed", lambda module: False)
    provider = EXPLAINING.replace("CHOSEN", "'plain'").replace("FALLBACK", "False")
    distributions.add_backend("chip", aliases=("chip2",), provider=provider)
    return distributions


class TestList:
    def test_what_is_available_shows_its_device(self, chip, capsys):
        status, out, err = run(capsys, "list")
        assert (status, err) == (0, "")
        (row,) = [line for line in out.splitlines() if line.lstrip().startswith("chip")]
        assert "available" in row
        assert "a device" in row
        assert "1.0 GiB" in row

    def test_what_is_not_shows_reason_and_remedy(self, chip, capsys):
        chip.add_backend("other", probe="Probe.absent('no [card] here', 'buy one')")
        status, out, _ = run(capsys, "list")
        assert status == 0
        assert "other: no [card] here\n  -> buy one" in out

    def test_json_is_the_report(self, chip, capsys):
        status, out, _ = run(capsys, "list", "--json")
        assert status == 0
        assert json.loads(out) == discovery.discover().to_dict()

    def test_it_fits_80_columns_and_has_no_colour_when_piped(self, chip, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("NO_COLOR", "1")
        words = "the card is there and its driver is older than the one that the stack needs "
        chip.add_backend("other", probe=f"Probe.broken({words * 3!r}, 'mend it')")
        chip.add_backend("long", probe="Probe.available(DeviceInfo(0, 'a long name ' * 9, 2**40))")
        _, out, _ = run(capsys, "list")
        assert max(len(line) for line in out.splitlines()) <= 80
        assert "\x1b" not in out

    def test_nothing_installed_is_a_table_without_rows(self, distributions, capsys):
        assert run(capsys, "list")[0] == 0


class TestDoctor:
    def test_a_healthy_environment(self, chip, capsys):
        status, out, _ = run(capsys, "doctor")
        assert status == 0
        assert "get_provider() takes chip: the highest priority (10)" in out
        assert "Nothing is wrong." in out
        assert "vendor-chip" in out
        assert "contract 1.0, which fits" in out

    def test_nothing_available_is_wrong(self, distributions, capsys):
        distributions.add_backend("chip", probe="Probe.absent('no card')")
        status, out, _ = run(capsys, "doctor")
        assert status == 1
        assert "get_provider() fails." in out
        assert "No backend is available." in out

    def test_broken_hardware_is_wrong(self, chip, capsys):
        chip.add_backend("gpu", priority=99, probe="Probe.broken('old driver', 'mend it')")
        status, out, _ = run(capsys, "doctor")
        assert status == 1
        assert "error: gpu (vendor-gpu 1.0): old driver\n  -> mend it" in out
        assert out.count("error:") == 1

    @pytest.mark.parametrize(("seen", "expected"), [(True, 1), (False, 0)])
    def test_a_fault_is_wrong_where_its_hardware_is(
        self, chip, capsys, monkeypatch, seen, expected
    ):
        chip.add("sagellm-backend-cuda", {"cuda": "gone:SPEC"})
        sightings = (Sighting("cuda", 1, "/dev/nvidia0"),) if seen else ()
        monkeypatch.setattr(discovery, "seen_accelerators", lambda: sightings)
        status, out, _ = run(capsys, "doctor")
        assert status == expected
        assert ("error: cuda" if seen else "warning: cuda") in out

    def test_a_fault_of_the_cpu_is_wrong_everywhere(self, chip, capsys):
        chip.add("sagellm-backend-cpu", {"cpu": "gone:SPEC"})
        assert run(capsys, "doctor")[0] == 1

    def test_unsupported_hardware_and_missing_packages_are_warnings(
        self, chip, capsys, monkeypatch
    ):
        seen = (Sighting("ascend", 1, "/dev/davinci0"),)
        monkeypatch.setattr(discovery, "seen_accelerators", lambda: seen)
        chip.add_backend("gpu", probe="Probe.unsupported('not yet', 'wait')")
        status, out, _ = run(capsys, "doctor", "--json")
        data = json.loads(out)
        assert status == 0
        assert data["healthy"]
        assert [p["severity"] for p in data["problems"]] == ["warning", "warning"]
        assert data["sightings"][0]["package"] == "sagellm-backend-ascend"

    def test_a_foreign_owner_of_our_package_is_named(self, chip, capsys):
        chip.add("isagellm-backend", {})
        assert "isagellm-backend installs" in " ".join(run(capsys, "doctor")[1].split())

    def test_a_contract_that_does_not_fit_is_shown(self, chip, capsys):
        chip.add_backend("late", contract=(7, 1))
        data = json.loads(run(capsys, "doctor", "--json")[1])
        (late,) = [p for p in data["packages"] if p["distribution"] == "vendor-late"]
        assert late == {
            "distribution": "vendor-late",
            "version": "1.0",
            "contract": "7.1",
            "fits": False,
        }

    def test_the_choice_of_the_environment_is_explained(self, chip, capsys, monkeypatch):
        monkeypatch.setenv("SAGELLM_BACKEND", "chip2")
        data = json.loads(run(capsys, "doctor", "--json")[1])
        assert data["choice"]["backend"] == "chip"
        assert data["choice"]["why"] == "SAGELLM_BACKEND names it"
        assert data["environment"]["SAGELLM_BACKEND"] == "chip2"
        monkeypatch.setenv("SAGELLM_BACKEND", "warp")
        status, out, _ = run(capsys, "doctor", "--json")
        assert status == 1
        assert "SAGELLM_BACKEND=warp names no backend" in json.loads(out)["choice"]["error"]

    def test_torch_npu_without_cann_is_a_trap(self, chip, capsys, monkeypatch):
        monkeypatch.setattr(frameworks, "is_installed", lambda module: module == "torch_npu")
        monkeypatch.delenv("TORCH_DEVICE_BACKEND_AUTOLOAD", raising=False)
        assert "`import torch` itself may fail" in " ".join(run(capsys, "doctor")[1].split())
        monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
        assert "Nothing is wrong" in run(capsys, "doctor")[1]

    def test_two_versions_of_core_are_wrong(self, chip, capsys, monkeypatch):
        versions = {"sagellm-backend-core": "9.9"}
        monkeypatch.setattr(doctor.frameworks, "version_of", versions.get)
        status, out, _ = run(capsys, "doctor")
        assert status == 1
        assert "the installed core 9.9" in " ".join(out.split())


class TestExplain:
    @pytest.mark.parametrize("place", range(5))
    def test_the_chosen_kernel_and_why_not_the_others(self, chip, capsys, place):
        words = ["rms_norm", "size=7", "eps=1e-6", "fast=true"]
        words[place:place] = ["--dtype", "bf16"]
        status, out, _ = run(capsys, "explain", *words)
        assert status == 0
        assert "rms_norm(x, weight)" in out
        assert "Scale x." in out
        assert "size=7, eps=1e-06, fast=True, dtype=bf16, backend chip runs plain" in out
        assert "[odd] size" in out

    @pytest.mark.parametrize(
        ("chosen", "fallback", "said"),
        [
            ("None", "False", "has no kernel that runs and refuses"),
            ("'reference'", "True", "computes by the reference on the host"),
        ],
    )
    def test_the_verdict_when_no_kernel_fits(self, distributions, capsys, chosen, fallback, said):
        provider = EXPLAINING.replace("CHOSEN", chosen).replace("FALLBACK", fallback)
        distributions.add_backend("chip", provider=provider)
        assert said in run(capsys, "explain", "rms_norm", "--backend", "chip")[1]

    def test_json(self, chip, capsys):
        status, out, _ = run(capsys, "explain", "rms_norm", "n=none", "word=neox", "--json")
        data = json.loads(out)
        assert status == 0
        assert data["backend"] == "chip"
        assert data["static"] == {"n": None, "word": "neox"}

    @pytest.mark.parametrize("flags", [[], ["--json"]])
    def test_errors_are_a_message_and_a_hint_without_a_traceback(self, chip, capsys, flags):
        status, out, err = run(capsys, "explain", "warp", *flags)
        assert status == 1
        if flags:
            assert err == ""
            assert json.loads(out)["code"] == "operator_not_found"
        else:
            assert out == ""
            assert "No operation 'warp'" in err
            assert "Look again." in err
            assert "Traceback" not in err

    def test_an_unknown_backend_or_dtype_is_an_error(self, chip, capsys):
        assert run(capsys, "explain", "rms_norm", "--backend", "warp")[0] == 1
        assert run(capsys, "explain", "rms_norm", "--dtype", "fp64")[0] == 1


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["warp"],
        ["list", "--nope"],
        ["list", "extra"],
        ["explain"],
        ["explain", "rms_norm", "hidden"],
        ["explain", "rms_norm", "1x=2"],
        ["explain", "rms_norm", "name=2"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_one_line_and_exit_2(argv, capsys):
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "--help" in err


def test_the_version(capsys):
    assert run(capsys, "--version") == (0, f"sagellm-backend {sagellm_backend.__version__}\n", "")


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**50, "1024.0 TiB")],
)
def test_bytes_for_people(count, text):
    assert tables.human_bytes(count) == text


def test_a_reader_that_leaves_early_is_no_traceback():
    command = [sys.executable, "-m", "sagellm_backend.cli", "list", "--json"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE), *sys.path])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
