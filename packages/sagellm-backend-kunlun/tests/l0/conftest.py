"""Tests at L0: what the installed Paddle says of its functions; nothing is computed.

Where Paddle is not installed, nothing here is collected.
"""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

if find_spec("paddle"):
    sys.path.append(str(Path(__file__).parent))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Paddle warns of compilers that it does not find
        import paddle  # noqa: F401
else:
    collect_ignore_glob = ["test_*.py"]
