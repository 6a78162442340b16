"""What tests ask of the runtime that Paddle has loaded: its trace, and streams that are busy."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kunlun_sim.build import NAME


@contextmanager
def traced() -> Iterator[list[str]]:
    """The calls of a block, one line each, which are in the list when the block ends.

    ``call NAME ...`` was done by the caller, ``submit NAME stream ID ...`` was given to a stream,
    ``done NAME stream ID`` was finished by it; other lines name what was created or waited for.
    """
    lines: list[str] = []
    _library().kunlun_sim_trace(1)
    try:
        yield lines
    finally:
        size = _library().kunlun_sim_trace_read(None, 0) + (1 << 16)
        buffer = ctypes.create_string_buffer(size)
        _library().kunlun_sim_trace_read(buffer, size)
        _library().kunlun_sim_trace(0)
        lines += buffer.value.decode().splitlines()


def stream_id(stream: Any) -> int:
    """The number by which the trace calls a ``paddle.device.Stream``."""
    return int(_library().kunlun_sim_stream_id(_address(stream)))


def sleep(stream: Any, milliseconds: int) -> None:
    """Keep a ``paddle.device.Stream`` busy; returns at once."""
    _library().kunlun_sim_sleep(_address(stream), milliseconds)


def _address(stream: Any) -> int:
    return int(stream.stream_base.raw_stream)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(os.environ["CUSTOM_DEVICE_ROOT"]) / NAME))
    library.kunlun_sim_trace.argtypes = [ctypes.c_int]
    library.kunlun_sim_trace_read.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.kunlun_sim_trace_read.restype = ctypes.c_size_t
    library.kunlun_sim_sleep.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.kunlun_sim_stream_id.argtypes = [ctypes.c_void_p]
    return library
