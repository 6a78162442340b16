"""Print the pip options that find the build of torch this machine needs.

On Linux, PyPI's torch is the CUDA build of several gigabytes. Where no NVIDIA GPU is seen and
PyTorch's own index can be reached, the CPU build is taken from there; else pip's own sources serve.
"""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
NVIDIA = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
TIMEOUT_S = 5.0


def pip_options() -> list[str]:
    """Return the options for ``pip install torch``; empty where pip's own sources will do."""
    if sys.platform != "linux" or any(device.exists() for device in NVIDIA):
        return []
    try:
        with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=TIMEOUT_S):
            return ["--extra-index-url", CPU_INDEX]
    except OSError as error:
        note = f"{CPU_INDEX} cannot be reached ({error}): pip looks in its own sources"
        print(f"{note}; PyPI's torch is the CUDA build, 3 GB", file=sys.stderr)
        return []


if __name__ == "__main__":
    print(*pip_options())
