"""vLLM's choice of a platform in a cold process, beyond importing torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from worker import serve

CODE = """
import time
import torch
began = time.perf_counter()
from vllm.platforms import current_platform
current_platform.device_type
print(time.perf_counter() - began)
"""


def warm() -> tuple[Callable[[], Any], dict[str, Any]]:
    """A call that starts a process, which measures itself."""

    def call() -> float:
        done = subprocess.run([sys.executable, "-c", CODE], check=True, stdout=subprocess.PIPE)
        return float(done.stdout.split()[-1])

    return call, {}


if __name__ == "__main__":
    serve(warm)
