"""Faults of the simulated device that tests ask for."""

from __future__ import annotations

import ctypes


def lose(code: int) -> None:
    """Let every device answer with a number of the runtime's from now on; 0 ends it."""
    ctypes.CDLL("libascendcl.so").ascend_sim_lose(code)
