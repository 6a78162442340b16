"""A lock file, for machines on which only one may measure at a time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

_HOLD_S = 60.0


class QuietLock:
    """An exclusive ``flock`` on a file, held while rows are measured; nothing without a file.

    Whoever computes beside a benchmark takes it shared (``flock -s FILE command``) and waits.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._since = 0.0

    def take(self) -> None:
        """Wait until the machine is ours."""
        if self._path is None or self._file is not None:
            return
        import fcntl

        self._file = self._path.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._since = time.monotonic()

    def pause(self) -> None:
        """Let others in if they have waited for long."""
        if self._file is not None and time.monotonic() - self._since > _HOLD_S:
            self.release()

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            self._file.close()
            self._file = None
