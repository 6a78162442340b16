"""Python in processes of their own: devices, memory limits and import orders are a process's."""

from __future__ import annotations

import os
import subprocess
import sys


def output_of(code, *arguments, limit_s=120, **environment):
    """What the code prints. Fails with what it said where it fails."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env={**os.environ, "GLOG_minloglevel": "3", **environment},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
