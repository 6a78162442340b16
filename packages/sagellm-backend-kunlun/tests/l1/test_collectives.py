"""Two processes over gloo, with arrays on the simulated device; what they check is in pair.py."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

LIMIT_S = 120
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCH_VARIABLES}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    pair, address = Path(__file__).with_name("pair.py"), f"tcp://127.0.0.1:{free_port()}"
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    ranks = []
    try:
        for rank, log in enumerate(logs):
            command = [sys.executable, "-W", "ignore", str(pair), str(rank), address]
            with log.open("w") as sink:
                ranks.append(subprocess.Popen(command, stdout=sink, stderr=sink, env=environment))
        deadline = time.monotonic() + LIMIT_S
        statuses = [rank.wait(deadline - time.monotonic()) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    told = [log.read_text() for log in logs]
    assert statuses == [0, 0], "\n".join(told)
    assert all(text.splitlines()[-1] == "ok" for text in told)
