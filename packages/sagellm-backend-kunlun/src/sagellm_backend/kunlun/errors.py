"""The one way in which Paddle's failures become ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sagellm_backend.errors import BackendError, OutOfMemoryError, UnavailableError
from sagellm_backend.spec import describe

_NO_MEMORY = ("out of memory", "resourceexhausted", "fail to alloc", "not enough memory")


@contextmanager
def check(operation: str, device: str, requested: int = 0) -> Iterator[None]:
    """Run calls of Paddle; a failure inside becomes an error that names ``operation``."""
    try:
        yield
    except BackendError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{operation} found no memory on {device} for {requested:,} bytes: "
                f"{describe(error)}",
                hint="Free arrays or pools, call clear_cache(), or ask for fewer blocks.",
                requested=requested,
            ) from error
        raise UnavailableError(f"{operation} failed on {device}: {describe(error)}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Paddle says that memory ran out."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in said for phrase in _NO_MEMORY)
