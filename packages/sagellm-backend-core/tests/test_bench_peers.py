"""Peers in processes of their own, by scripts that answer well or badly."""

from __future__ import annotations

import platform
import sys

import pytest

from sagellm_backend.bench.peers import Peers, Worker
from sagellm_backend.bench.row import Absent, Side
from sagellm_backend.errors import InvalidArgumentError, UnavailableError

ECHO = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked["do"] == "warm":
        print(json.dumps({"ready": {"size": asked.get("size")}}), flush=True)
    else:
        print(json.dumps({"seconds": [asked["budget"], 2.0]}), flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    def write(text, name="peer.py"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def peers(folder):
    made = []

    def make(text):
        made.append(Peers({"other": sys.executable}, folder(text)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_side_runs_in_the_other_python(peers):
    side = peers(ECHO).side("other", "Other", "peer.py", {"size": 3})
    assert isinstance(side, Side)
    assert side.turn(0.5) == [0.5, 2.0]
    assert side.facts == {"size": 3}
    assert side.process


def test_one_process_serves_all_sides_of_a_key(peers):
    pid = "import os\n" + ECHO.replace('[asked["budget"], 2.0]', "[float(os.getpid())]")
    found = peers(pid)
    assert ("other", "peer.py", "") not in found._workers
    first, second = (found.side("other", "Other", "peer.py", {}) for _ in range(2))
    third = found.side("other", "Other", "peer.py", {}, "another")
    assert ("other", "peer.py", "another") in found._workers
    assert first.turn(0.0) == second.turn(0.0)
    assert first.turn(0.0) != third.turn(0.0)
    assert first.process != third.process


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import no_such_module_at_all", "has ended with status 1: ModuleNotFoundError: No module"),
        ('input(); print(\'{"error": "no kernel"}\', flush=True)', "peer.py: no kernel"),
        ("import os; input(); os.kill(os.getpid(), 4)", "has ended with status -4: no words"),
        ("input(); print('hello', flush=True)", "did not answer in JSON but 'hello'"),
    ],
)
def test_a_peer_that_fails_is_absent_with_its_last_words(peers, text, words):
    side = peers(text).side("other", "Other", "peer.py", {})
    assert isinstance(side, Absent)
    assert words in side.reason


def test_the_versions_of_a_peer_are_asked_of_its_python():
    peers = Peers({"here": sys.executable, "gone": "/no/such/python"}, None)
    found = peers.versions()
    assert found["here"]["Python"] == platform.python_version()
    assert found["here"]["sagellm-backend-core"]
    assert found["gone"] == {}


def test_a_peer_that_does_not_answer_is_ended(folder):
    worker = Worker(sys.executable, folder("import time; time.sleep(60)") / "peer.py")
    with pytest.raises(UnavailableError, match=r"no answer for 0\.2 s"):
        worker.ask({"do": "warm"}, timeout_s=0.2)
    worker.close()
    assert worker._process.returncode != 0


def test_a_python_that_is_not_there(folder):
    peers = Peers({"other": "/no/such/python"}, folder(ECHO))
    side = peers.side("other", "Other", "peer.py", {})
    assert isinstance(side, Absent)
    assert "/no/such/python cannot be started" in side.reason


def test_a_peer_needs_the_scripts(folder):
    assert Peers({"other": sys.executable}, None).side("other", "Other", "peer.py", {}) == Absent(
        "Other", "needs the repository's scripts: --also benchmarks"
    )
    with pytest.raises(InvalidArgumentError, match=r"none\.py does not exist"):
        Peers({"other": sys.executable}, folder(ECHO)).side("other", "Other", "none.py", {})
