"""The command line of the suite: what it prints, and its exit status."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sagellm_backend.cli import conformance, main
from sagellm_backend.conformance import suite

PLANTED = Path(__file__).parent / "planted"
GOOD = "kv"
"""The profile of the planted suite whose cases pass."""


@pytest.fixture
def planted(monkeypatch, capsys):
    """The command line over a planted suite: status, standard output, standard error."""
    monkeypatch.syspath_prepend(str(PLANTED))
    monkeypatch.setenv("PYTHONPATH", str(PLANTED))
    monkeypatch.chdir(PLANTED)

    def run(*arguments, modules=("planted_cases",)):
        monkeypatch.setattr(suite, "modules", lambda: modules)
        try:
            status = main(["conformance", *arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


class TestRun:
    def test_conformant_is_0_and_says_what_was_proven(self, planted):
        status, out, _ = planted("run", "--backend", "reference", "--profile", GOOD)
        assert status == 0
        assert "kv" in out
        assert "reference is conformant: 2 of 2 cases" in out
        assert "replay" not in out

    def test_run_is_what_is_done_without_a_subcommand(self, planted):
        status, out, _ = planted("--backend", "reference", "--profile", GOOD, "--depth", "smoke")
        assert status == 0
        assert "depth smoke" in out

    def test_a_failure_is_1_and_its_replay_shows_it_again(self, planted):
        status, out, _ = planted(
            "run", "--backend", "reference", "--seed", "77", modules=("planted_gone",)
        )
        assert status == 1
        assert "CRASHED core.exits[1]" in out
        assert "the process exited with 1" in out
        assert "reference is NOT conformant: 0 of 3 cases" in out
        line = next(line for line in out.splitlines() if "--case 'core.exits[0]'" in line)
        words = shlex.split(line.partition("replay: ")[2])
        assert words[:3] == ["sagellm-backend", "conformance", "replay"]
        status, out, _ = planted(*words[2:], modules=("planted_gone",))
        assert status == 1
        assert "CRASHED core.exits[0]" in out
        assert "root seed 0x4d" in out
        assert "Its process ends." in out

    def test_a_provider_that_does_not_start_is_1(self, planted):
        status, out, _ = planted("run", "--factory", "planted_providers:raises")
        assert status == 1
        assert "planted at construction" in out
        assert "Nothing else could be examined" in out

    def test_json(self, planted):
        status, out, _ = planted("run", "--backend", "reference", "--profile", GOOD, "--json")
        (found,) = json.loads(out)["runs"]
        assert status == 0
        assert found["conformant"]
        assert [item["outcome"] for item in found["cases"]] == ["passed", "passed"]
        assert found["descriptor"]["provider"] == "reference"

    def test_nothing_to_run_is_not_a_pass(self, planted):
        status, out, _ = planted("run", "--backend", "reference", "--profile", "stream")
        assert status == 1
        assert "nothing was proven" in out

    def test_every_available_backend_is_the_default(self, planted, monkeypatch):
        monkeypatch.setenv("SAGELLM_BACKENDS_ALLOW", "reference")
        status, out, _ = planted("run", "--profile", GOOD)
        assert status == 0
        assert "reference is conformant" in out

    def test_the_worst_backend_makes_the_status(self, planted):
        status, out, err = planted(
            *("run", "--backend", "no-such", "--backend", "reference", "--profile", GOOD)
        )
        assert status == 2
        assert "no-such" in err
        assert "reference is conformant" in out

    def test_a_random_seed_is_said(self, planted):
        seeds = set()
        for _ in range(2):
            _, out, _ = planted(
                *("run", "--backend", "reference", "--profile", GOOD, "--seed", "random", "--json")
            )
            seeds.add(json.loads(out)["runs"][0]["seed"])
        assert len(seeds) == 2

    def test_files(self, planted, tmp_path):
        status, _, _ = planted(
            *("run", "--backend", "reference", "--profile", GOOD, "--out", str(tmp_path / "new"))
        )
        assert status == 0
        names = {path.name for path in (tmp_path / "new" / "reference").iterdir()}
        assert {"plan.json", "ledger.jsonl", "report.json"} <= names


class TestStatus:
    @pytest.mark.parametrize(
        "words",
        [
            "run --backend nothing-of-this-name",
            "run --profile core,no-such",
            "run --depth deep",
            "run --seed -3",
            "run --seed soon",
            "run --case-timeout 0",
            "run --factory nonsense",
            "no-such-subcommand",
            "replay --backend reference",
            "replay --case core.passes",
            "replay --backend reference --case core.no_such",
            "plan --backend nothing-of-this-name",
        ],
    )
    def test_bad_usage_is_2(self, planted, words):
        status, out, err = planted(*words.split())
        assert status == 2
        assert not out
        assert "Traceback" not in err
        assert err.strip()

    @pytest.mark.parametrize("command", ["run", "plan"])
    def test_no_device_is_3(self, planted, command):
        status, _, err = planted(command, "--factory", "planted_providers:unavailable")
        assert status == 3
        assert "no such card" in err

    def test_a_suite_that_does_not_load_is_4(self, planted):
        status, _, err = planted("run", "--backend", "reference", modules=("planted_broken",))
        assert status == 4
        assert "planted_broken" in err
        assert "Traceback" not in err

    def test_a_folder_that_cannot_be_written_is_4(self, planted, tmp_path):
        (tmp_path / "file").touch()
        status, _, err = planted(
            "run", "--backend", "reference", "--profile", GOOD, "--out", str(tmp_path / "file")
        )
        assert status == 4
        assert "Cannot write" in err
        assert "Traceback" not in err

    def test_what_nobody_foresaw_is_4(self, planted, monkeypatch):
        monkeypatch.setattr("sagellm_backend.conformance.startup.start", lambda *_: 1 / 0)
        status, _, err = planted("plan", "--backend", "reference")
        assert status == 4
        assert "ZeroDivisionError" in err
        assert "fault of the suite" in err


def test_plan_runs_nothing(planted):
    status, out, _ = planted("plan", "--backend", "reference")
    assert status == 0
    assert "core.kills_itself  Its process is killed." in out
    assert "not applicable: graph.captures  capability_not_declared graph" in out
    assert "model.takes_long" not in out
    status, out, _ = planted("plan", "--backend", "reference", "--depth", "stress", "--json")
    assert status == 0
    assert "model.takes_long" in [case["id"] for case in json.loads(out)["reference"]["cases"]]


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_running(tmp_path, sent, status):
    note = tmp_path / "pid"
    program = (
        # A shell starts what runs behind it with this signal ignored, and that is inherited.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from sagellm_backend.conformance import suite; from sagellm_backend import cli\n"
        "suite.modules = lambda: ('planted_stuck',)\n"
        "sys.exit(cli.main(['conformance', 'run', '--backend', 'reference']))"
    )
    paths = [str(PLANTED), str(Path(conformance.__file__).parents[2])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PLANTED_PID_FILE": str(note)}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environ, stderr=subprocess.PIPE, text=True
    ) as command:
        deadline = time.monotonic() + 30
        while not (note.exists() and note.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        command.send_signal(sent)
        _, err = command.communicate(timeout=20)
    assert command.returncode == status
    assert "Traceback" not in err
    assert not Path(f"/proc/{note.read_text()}").exists()


def test_the_module_is_the_same_command(tmp_path):
    source = str(Path(conformance.__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-m", "sagellm_backend.conformance", "--backend", "nothing-of-this-name"],
        env={**os.environ, "PYTHONPATH": source},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "nothing-of-this-name" in run.stderr
