"""Many copies in one call of the driver: ``cuMemcpyBatchAsync``, through cuda-bindings.

The bindings are the extra ``[bindings]``; the call is that of CUDA 12.8 and later. Never run on a
card: bound to the real bindings in tests, over a driver that is made up.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

LEAST = 12080
"""The first driver that has the call, in CUDA's numbers."""

Numbers = npt.NDArray[np.int64]


class DriverBatches:
    """Queues batches of copies. ``driver`` is the module ``cuda.bindings.driver``. Thread-safe."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        attributes = driver.CUmemcpyAttributes()
        order = driver.CUmemcpySrcAccessOrder
        # Host memory too is read in the stream's order: earlier work there may still fill it.
        attributes.srcAccessOrder = order.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
        self._attributes = [attributes]

    def copy(self, targets: Numbers, sources: Numbers, sizes: Numbers, stream: int) -> None:
        """Queue copies of ``sizes[i]`` bytes from ``sources[i]`` to ``targets[i]``, both addresses.

        ``stream`` is a handle other than 0; its context is this thread's current one. The copies
        come in the stream's order and in any order among themselves. Raises :class:`RuntimeError`
        with the driver's name for what is wrong; some copies may then be queued.
        """
        pointer = self._driver.CUdeviceptr
        error, *_ = self._driver.cuMemcpyBatchAsync(
            [pointer(address) for address in targets.tolist()],
            [pointer(address) for address in sources.tolist()],
            sizes.tolist(),
            sizes.size,
            self._attributes,
            [0],  # which hold from the first copy on
            len(self._attributes),
            stream,
        )
        if int(error):
            raise RuntimeError(f"cuMemcpyBatchAsync of {sizes.size} copies: {error.name}")


def find() -> DriverBatches | None:
    """The driver's batches, or ``None`` where bindings or driver have none."""
    try:
        driver = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        return None
    if not hasattr(driver, "cuMemcpyBatchAsync"):
        return None
    try:
        error, version = driver.cuDriverGetVersion()
    except RuntimeError:  # no driver, or one that these bindings cannot load
        return None
    # Bindings of a major release ask the driver for the calls as they are in it.
    least = max(LEAST, int(driver.CUDA_VERSION) // 1000 * 1000)
    return DriverBatches(driver) if not int(error) and version >= least else None
