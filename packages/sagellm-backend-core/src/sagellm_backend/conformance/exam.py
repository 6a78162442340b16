"""The exam: what a case is given, and how it says what is wrong."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from sagellm_backend.conformance.case import SUITE_VERSION, Case
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import BackendError

if TYPE_CHECKING:
    from sagellm_backend.base import BackendProvider
    from sagellm_backend.capability import CapabilityDescriptor

REFUSAL_S = 5.0
"""Seconds within which a call must refuse what it cannot do."""

E = TypeVar("E", bound=BackendError)


class CheckFailed(AssertionError):  # noqa: N818 - the outcome is named so
    """What a case says when the provider does not do what it claims."""


def case_seed(root_seed: int, case_id: str) -> int:
    """The seed of one case: 64 bits that depend on root seed, id and suite version only.

    Thus the data of a case does not depend on which others are run, or in what order.
    """
    text = f"{root_seed}|{case_id}|{SUITE_VERSION}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Exam:
    """What one case works with. For one thread, unless a case's own threads only check.

    ``provider`` is fresh for the case and closed afterwards, as are those of :meth:`make`.
    ``capability`` is the descriptor that the plan was made from. ``rng`` gives the same numbers
    whenever the case is run with this seed, and on every rank. ``rank`` of ``world`` processes run
    the case; with more than one, ``init_method`` is where they meet. ``checkpoint`` is the folder of
    a model, for cases that asked for one.
    """

    def __init__(
        self,
        case: Case,
        capability: CapabilityDescriptor,
        build: Callable[[Mapping[str, Any]], BackendProvider],
        *,
        root_seed: int = 0,
        depth: str = "standard",
        rank: int = 0,
        world: int = 1,
        init_method: str | None = None,
        checkpoint: Path | None = None,
        leave: Callable[[], None] | None = None,
    ) -> None:
        self.case = case
        self.capability = capability
        self.seed = case_seed(root_seed, case.id)
        self.rng = np.random.Generator(np.random.Philox(self.seed))
        self.depth = depth
        self.rank = rank
        self.world = world
        self.init_method = init_method
        self.checkpoint = checkpoint
        self.metrics: dict[str, float] = {}
        self._build = build
        self._leave = leave
        self._made = ExitStack()
        self.provider = self.make()

    def __getitem__(self, name: str) -> Any:
        """The value of a parameter. Raises :class:`KeyError`."""
        return self.case.values[name]

    def make(self, **config: Any) -> BackendProvider:
        """Another provider, with this config, closed after the case.

        Of several processes each gets the device of its rank, as far as there are as many.
        """
        if self.world > 1:
            config.setdefault("device", self.rank % max(len(self.capability.devices), 1))
        made = self._build(config)
        self._made.callback(made.close)
        return made

    def check(self, condition: object, message: str) -> None:
        """Fail the case with ``message`` unless ``condition`` holds."""
        if not condition:
            raise CheckFailed(message)

    def equal_bits(self, got: Any, wanted: npt.NDArray[Any], what: str) -> None:
        """Fail unless two NumPy arrays have equal shape, dtype and bits, NaNs included."""
        if not isinstance(got, np.ndarray):
            raise CheckFailed(f"{what}: a {type(got).__name__} came, not an array.")
        if got.dtype != wanted.dtype or got.shape != wanted.shape:
            raise CheckFailed(
                f"{what}: {got.dtype}{got.shape} came, wanted {wanted.dtype}{wanted.shape}."
            )
        differ = (_bytes(got) != _bytes(wanted)).any(axis=-1)
        if differ.any():
            first = np.unravel_index(int(np.argmax(differ)), wanted.shape or (1,))
            place = tuple(int(axis) for axis in first)[: wanted.ndim]
            raise CheckFailed(
                f"{what}: {int(differ.sum()):,} of {wanted.size:,} elements differ, the first at "
                f"{place}: {got[place]} came, wanted {wanted[place]}."
            )

    def refuses(
        self,
        kind: type[E],
        call: Callable[..., Any],
        *args: Any,
        says: tuple[Any, ...] = (),
        **kwargs: Any,
    ) -> E:
        """The error by which ``call(*args, **kwargs)`` refuses.

        Fails the case unless the call raises ``kind``, within :data:`REFUSAL_S`, with a message
        that names each of ``says`` (in any case of letters).
        """
        what = getattr(call, "__qualname__", repr(call))
        start = time.monotonic()
        try:
            result = call(*args, **kwargs)
        except kind as error:
            taken, refusal = time.monotonic() - start, error
        except Exception as error:
            if is_skip(error):
                raise
            raise CheckFailed(
                f"{what} raised {type(error).__name__} instead of {kind.__name__}: {error}"
            ) from error
        else:
            raise CheckFailed(
                f"{what} returned a {type(result).__name__} instead of raising {kind.__name__}."
            )
        if taken > REFUSAL_S:
            raise CheckFailed(f"{what} took {taken:.1f} s to refuse; {REFUSAL_S} s are allowed.")
        text = str(refusal)
        missing = [str(word) for word in says if str(word).lower() not in text.lower()]
        if missing:
            raise CheckFailed(f"{what} refused without naming {', '.join(missing)}: {text}")
        return refusal

    def measure(self, name: str, value: float) -> None:
        """Put a finite number into the report. The last of a name counts."""
        number = float(value)
        if not math.isfinite(number):
            raise CheckFailed(f"The measure {name} is {number}.")
        self.metrics[name] = number

    def fill(self, shape: int | tuple[int, ...], dtype: DType) -> npt.NDArray[Any]:
        """Random bits of a dtype, without NaN; integers over their full range."""
        target = DType.parse(dtype).numpy
        if DType.parse(dtype) is DType.INT4:
            return self.rng.integers(-8, 8, shape, np.int8).astype(target)
        words = np.dtype(f"u{target.itemsize}")
        bits = self.rng.integers(0, np.iinfo(words).max, shape, words, endpoint=True)
        bits = np.asarray(bits, words)
        if DType.parse(dtype).is_floating:
            # Without its highest bit an exponent of all ones is that of a number below 2.
            mask = words.type(~(1 << (8 * target.itemsize - 2)) & np.iinfo(words).max)
            bits = np.where(np.isnan(bits.view(target).astype(np.float32)), bits & mask, bits)
        return bits.view(target)

    def die(self) -> None:
        """End this rank's process as a crash would, and count that as its pass.

        For cases of several processes that prove what the others do then. Raises
        :class:`CheckFailed` where there is only one.
        """
        if self._leave is None:
            raise CheckFailed(f"{self.case.id} runs in one process, which cannot be left.")
        self._leave()

    def close(self) -> None:
        """Close every provider of the case, the last first, whatever the others raise."""
        self._made.close()


def is_skip(error: BaseException) -> bool:
    """Whether an exception asks a test runner to look away.

    unittest's ``SkipTest``, and pytest's outcomes, which are known by name: pytest is not imported.
    """
    return any(
        kind.__name__ in {"SkipTest", "Skipped", "XFailed", "Exit", "OutcomeException"}
        for kind in type(error).__mro__
    )


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Every element as a row of bytes."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).reshape(flat.size, array.dtype.itemsize)
