"""Where Paddle's next kernels run: its current device and stream are the process's, not a thread's.

Paddle's allocators for XPUs and custom devices know nothing of streams: memory that one stream's
work has freed may be given to another's. So a switch from one stream to the next puts the new one
behind the old, on the device; the host does not wait.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import paddle

from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.kunlun.misuse import MisuseError
from sagellm_backend.kunlun.runtime import Runtime
from sagellm_backend.kunlun.streams import KunlunStream
from sagellm_backend.streams import entered_stream

_lock = threading.RLock()
_current: dict[tuple[str, int], Any] = {}
_defaults: dict[tuple[str, int], Any] = {}


class Launcher:
    """Runs calls of Paddle on the device and stream that they are for. Thread-safe.

    The stream is the one that is entered in the calling thread, else the device's default one.
    """

    def __init__(self, owner: object, runtime: Runtime) -> None:
        self._owner = owner
        self._runtime = runtime
        self._place: Any = None
        self._index = -1

    def wrap(self, operation: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """``kernel``, run where its first tensor lies; tensors of other places are refused.

        Paddle itself would copy them over in silence.
        """

        @functools.wraps(kernel)
        def launched(*args: Any, **kwargs: Any) -> Any:
            index = self._common_device(operation, (*args, *kwargs.values()))
            with _lock:
                self._prepare(index)
                return kernel(*args, **kwargs)

        return launched

    @contextmanager
    def on(self, index: int) -> Iterator[None]:
        """Run what is inside on device ``index``."""
        with _lock:
            self._prepare(index)
            yield

    def _common_device(self, operation: str, args: tuple[Any, ...]) -> int:
        found: int | None = None
        for arg in args:
            if not isinstance(arg, paddle.Tensor):
                continue
            index = self._runtime.index_of(arg.place)
            if index is None:
                raise MisuseError
            if found is not None and index != found:
                kind = self._runtime.device_type
                raise InvalidArgumentError(
                    f"{operation}: arrays lie on {kind}:{found} and on {kind}:{index}.",
                    hint="Move them to one device first.",
                )
            found = index
        if found is None:
            raise MisuseError
        return found

    def _prepare(self, index: int) -> None:
        if index != self._index or paddle.framework._current_expected_place_() is not self._place:
            self._place = paddle.device.set_device(self._runtime.place(index))
            self._index = index
        if self._runtime.has_streams:
            self._prepare_stream(index)

    def _prepare_stream(self, index: int) -> None:
        key = (self._runtime.device_type, index)
        if key not in _defaults:
            _current[key] = _defaults[key] = self._runtime.default_stream(index)
        entered = entered_stream(self._owner)
        wanted = _defaults[key]
        if isinstance(entered, KunlunStream) and entered.index == index:
            wanted = entered.native
        before = _current[key]
        if wanted is before:
            return
        event = paddle.device.Event()
        event.record(before)
        wanted.wait_event(event)
        self._runtime.set_stream(wanted, index)
        _current[key] = wanted
