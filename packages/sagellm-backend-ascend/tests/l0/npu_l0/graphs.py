"""``torch.npu``'s graphs over those of the simulated device: task groups, updates, external events.

A replay that would wait for ever, and an update or a record that the last replay could still undo,
are errors here. What a stream has waited for is known by the numbers of the replays behind it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import simdev
import torch
from simdev.graphs import CUDAGraph
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from npu_l0.library import demand

_replays = itertools.count(1)
_known = defaultdict(int)
"""By stream, the last replay that its next work comes after."""


class Event(torch.Event):
    """An event that knows which replay it comes after; one with timing is torch's own."""

    def __new__(cls, enable_timing=False, blocking=False, interprocess=False):
        kind = torch.Event if enable_timing else cls
        return torch.Event.__new__(kind, "simdev", enable_timing=enable_timing)

    def record(self, stream=None):
        stream = stream or simdev.module.current_stream()
        self.after = _known[stream]
        super().record(stream)


class Stream(simdev.module.Stream):
    """A stream that takes a priority and cannot tell the range of them, as torch_npu's."""

    def __new__(cls, device=None, priority=0, **kwargs):
        return super().__new__(cls, device=device, priority=priority, **kwargs)

    @staticmethod
    def priority_range():
        raise RuntimeError("NPU does not support Stream.priority_range() currently.")

    def wait_event(self, event):
        _known[self] = max(_known[self], getattr(event, "after", 0))
        super().wait_event(event)


class ExternalEvent:
    """An event that captured work waits for, and work outside of the graph records."""

    def __init__(self):
        self._recorded, self._arrived, self._replay = False, False, 0

    def wait(self, stream=None):
        _append(stream, self._arrive)

    def reset(self, stream=None):
        _append(stream, self._clear)

    def record(self, stream=None):
        demand(_known[stream] >= self._replay, "recorded beside a replay that resets it")
        demand(not self._recorded, "recorded again before a replay has reset it")
        self._recorded = True

    def _arrive(self):
        demand(self._recorded, "the replay waits for ever")
        self._arrived, self._replay = True, NPUGraph.replay_number

    def _clear(self):
        demand(self._arrived, "reset before anything has waited")
        self._recorded = self._arrived = False


class NPUGraph(CUDAGraph):
    """A graph whose groups of tasks can be updated."""

    capturing = None
    replay_number = 0

    def __init__(self):
        super().__init__()
        self.last_replay = 0

    @property
    def calls(self):
        return self._recorder.calls

    def capture_begin(self, pool=None, capture_error_mode="global"):
        super().capture_begin()
        NPUGraph.capturing = self

    def capture_end(self):
        NPUGraph.capturing = None
        _open.clear()
        super().capture_end()

    def replay(self):
        self.last_replay = NPUGraph.replay_number = next(_replays)
        super().replay()
        _known[simdev.module.current_stream()] = self.last_replay

    def reset(self):
        super().reset()

    def pool(self):
        return super().pool()


class graph:  # noqa: N801 - its name in torch.npu
    """The context of a capture."""

    def __init__(
        self,
        npu_graph,
        pool=None,
        stream=None,
        auto_dispatch_capture=False,
        capture_error_mode: str = "global",
    ):
        demand(not auto_dispatch_capture, "calls are not taken up by themselves here")
        self._inner = simdev.graphs.graph(npu_graph, pool, stream, capture_error_mode)

    def __enter__(self):
        return self._inner.__enter__()

    def __exit__(self, *failure):
        return self._inner.__exit__(*failure)


def is_current_stream_capturing():
    return NPUGraph.capturing is not None


class _Group:
    def __init__(self, captured):
        self.graph, self.first, self.last = captured, len(captured.calls), None
        self.rewriter = None


_open = []


def graph_task_group_begin(stream):
    demand(not _open, "a group in a group")
    _append_check(stream)
    _open.append(_Group(NPUGraph.capturing))


def graph_task_group_end(stream):
    _append_check(stream)
    group = _open.pop()
    group.last = len(group.graph.calls)
    return group


def graph_task_update_begin(stream, handle):
    demand(NPUGraph.capturing is None, "an update during a capture")
    demand(_known[stream] >= handle.graph.last_replay, "updated beside a replay")
    demand(stream == simdev.module.current_stream(), "the calls would go to another stream")
    handle.rewriter = _Rewriter(handle)
    _open.append(handle)
    handle.rewriter.__enter__()


def graph_task_update_end(stream):
    handle = _open.pop()
    handle.rewriter.__exit__(None, None, None)
    demand(handle.rewriter.next == handle.last, "an update of some of a group's tasks")


class _Rewriter(TorchDispatchMode):
    """Puts calls in the place of captured ones, and runs none."""

    def __init__(self, group):
        super().__init__()
        self.group, self.next = group, group.first

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        demand(self.next < self.group.last, f"{func} is not in the group")
        before = self.group.graph.calls[self.next]
        demand(func is before[0], f"{func} in the place of {before[0]}")
        demand(_places(args, kwargs) == _places(*before[1:3]), "other arrays than were captured")
        self.group.graph.calls[self.next] = (func, args, kwargs or {}, before[3])
        self.next += 1
        return before[3]


def _places(args, kwargs):
    arrays = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    return [(array.data_ptr(), array.shape, array.stride()) for array in arrays]


def _append_check(stream):
    demand(NPUGraph.capturing is not None, "no capture is under way")
    demand(stream == simdev.module.current_stream(), "not the stream that is captured")


def _append(stream, step):
    _append_check(stream)
    NPUGraph.capturing.calls.append((step, (), {}, None))
