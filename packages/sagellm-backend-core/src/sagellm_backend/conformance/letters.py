"""Letters: bytes that the processes of a case give one another, by no means of the provider's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from sagellm_backend.conformance.exam import CheckFailed, Exam

if TYPE_CHECKING:
    from typing_extensions import Self

TIMEOUT_S = 20.0
_POLL_S = 0.005
_FAILED = "failed"


class Letters:
    """Named letters beside the meeting place of a case, which goes with the folder of the run.

    Every letter is written once, by one rank, and can be read by all. Used as a context, it tells
    the others when this rank fails, so that they need not wait for their time to be over.
    """

    def __init__(self, exam: Exam) -> None:
        place = (exam.init_method or "").removeprefix("file://")
        if not place:
            raise CheckFailed(f"{exam.case.id} runs in one process, which has nobody to write to.")
        self._place = Path(place)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.send(_FAILED)

    def send(self, name: str, content: bytes = b"") -> None:
        """Write a letter. It appears whole."""
        target = self._path(name)
        draft = target.with_name(f"{target.name}.draft")
        draft.write_bytes(content)
        draft.replace(target)

    def receive(self, name: str) -> bytes:
        """Wait for a letter; fails the case after :data:`TIMEOUT_S`."""
        path, deadline = self._path(name), time.monotonic() + TIMEOUT_S
        while not path.exists():
            if self._path(_FAILED).exists():
                raise CheckFailed(f"The other process failed before it sent {name!r}.")
            if time.monotonic() > deadline:
                raise CheckFailed(f"No word {name!r} came from the other process.")
            time.sleep(_POLL_S)
        return path.read_bytes()

    def _path(self, name: str) -> Path:
        return self._place.with_name(f"{self._place.name}.{name.replace(' ', '-')}")
