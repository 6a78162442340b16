"""The facade where this package is installed and torch is not."""

from __future__ import annotations

import subprocess
import sys


def test_a_missing_framework_is_not_taken_for_a_missing_distribution():
    code = """
import sys
sys.modules["torch"] = None
import sagellm_backend
try:
    sagellm_backend.CPUBackendProvider
except ModuleNotFoundError as error:
    assert error.name == "torch", error
    assert "install" not in str(error)
else:
    raise SystemExit("loaded without torch")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
