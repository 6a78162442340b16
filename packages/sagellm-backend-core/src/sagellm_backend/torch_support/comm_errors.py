"""The errors of torch.distributed, told as errors of our family."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sagellm_backend.errors import BackendError, CommError, CommTimeoutError

_TIMED_OUT = re.compile(r"timed? ?out", re.IGNORECASE)
_SOURCE_LINE = re.compile(r"^\[\S+:\d+\]\s*")
_GLOO_ADVICE = " This is typically"
_SLOW_HINT = (
    "A peer is slower than the timeout, has stopped, or makes other calls: compare the logs of the "
    "ranks, or raise timeout_s."
)
_DEAD_HINT = (
    "Most often a peer process has ended: read its log. Then close this communicator and join anew."
)


@contextmanager
def comm_errors(
    operation: str,
    rank: int,
    world_size: int,
    timeout_s: float,
    on_error: Callable[[CommError], None] | None = None,
) -> Iterator[None]:
    """Turn what torch.distributed raises into :class:`CommError` or :class:`CommTimeoutError`.

    Errors of our own family pass unchanged. ``on_error`` is told of a translated error before it
    is raised.
    """
    start = time.monotonic()
    try:
        yield
    except BackendError:
        raise
    except (RuntimeError, ValueError) as error:
        elapsed = time.monotonic() - start
        reason = _SOURCE_LINE.sub("", str(error)).partition("\n")[0].partition(_GLOO_ADVICE)[0]
        late = elapsed >= timeout_s or _TIMED_OUT.search(reason) is not None
        kind, hint = (CommTimeoutError, _SLOW_HINT) if late else (CommError, _DEAD_HINT)
        translated = kind(
            f"{operation} failed on rank {rank} of {world_size} after {elapsed:.1f} s "
            f"(timeout {timeout_s:g} s): {reason}",
            hint=hint,
            rank=rank,
            world_size=world_size,
            elapsed_s=elapsed,
            timeout_s=timeout_s,
        )
        if on_error is not None:
            on_error(translated)
        raise translated from error


__all__ = ["comm_errors"]
