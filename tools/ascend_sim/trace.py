"""The calls of the runtime that this process has made, as tests read them."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple


class Call(NamedTuple):
    """One line: a function's name, or ``kernel`` with an operator's, and what it was told."""

    name: str
    detail: dict[str, str]
    text: str

    @property
    def stream(self) -> int:
        """The handle of its stream; 0 where it has none."""
        return int(self.detail.get("stream", "0"), 16)


def take() -> list[Call]:
    """All calls since the last time, of all threads, in order.

    torch_npu makes many of its calls on a thread of its own, which must be waited for first; see
    :func:`of`.
    """
    text = _take()
    try:
        lines = ctypes.string_at(text).decode().splitlines()
    finally:
        _free()(text)
    return [_parse(line) for line in lines]


def of(function: Any) -> list[Call]:
    """The calls that ``function()`` makes on this thread's current device, and no others'."""
    _settle_queue()
    take()
    function()
    _settle_queue()
    return take()


def _settle_queue() -> None:
    """Wait until torch_npu's thread has made the calls that were asked of it, not for the device."""
    import torch

    _ = torch.npu.current_stream().npu_stream  # type: ignore[attr-defined] # by torch_npu


def _parse(line: str) -> Call:
    words = line.split()
    detail = dict(word.split("=", 1) for word in words if "=" in word)
    name = " ".join(words[:2]) if words[0] == "kernel" else words[0]
    return Call(name, detail, line)


@cache
def _free() -> Any:
    function = ctypes.CDLL(None).free
    function.argtypes = [ctypes.c_void_p]
    return function


def _take() -> int:
    function = ctypes.CDLL("libascendcl.so").ascend_sim_take_trace
    function.restype = ctypes.c_void_p
    return int(function())


__all__ = ["Call", "of", "take"]
