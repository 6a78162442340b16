"""``cuda.bindings.driver`` as far as batches of copies go, with its types and its refusals.

Test modules compare it with the real one where that is installed.
"""

from __future__ import annotations

import ctypes
import enum

CUDA_VERSION = 13000


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NOT_SUPPORTED = 801


class CUmemcpySrcAccessOrder(enum.IntEnum):
    CU_MEMCPY_SRC_ACCESS_ORDER_INVALID = 0
    CU_MEMCPY_SRC_ACCESS_ORDER_STREAM = 1
    CU_MEMCPY_SRC_ACCESS_ORDER_DURING_API_CALL = 2
    CU_MEMCPY_SRC_ACCESS_ORDER_ANY = 3


class CUmemcpyAttributes:
    def __init__(self):
        self.srcAccessOrder = CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_INVALID


class CUdeviceptr:
    def __init__(self, address):
        self.address = ctypes.c_uint64(address).value

    def __int__(self):
        return self.address


class Driver:
    """The module's names. ``execute(target, source, size, stream)`` does each copy."""

    CUDA_VERSION = CUDA_VERSION
    CUdeviceptr = CUdeviceptr
    CUmemcpyAttributes = CUmemcpyAttributes
    CUmemcpySrcAccessOrder = CUmemcpySrcAccessOrder

    def __init__(self, execute=None, version=CUDA_VERSION):
        self.calls = []
        self.result = CUresult.CUDA_SUCCESS
        self.version = version
        self._execute = execute or (lambda to, source, size, _: ctypes.memmove(to, source, size))

    def cuDriverGetVersion(self):
        return CUresult.CUDA_SUCCESS, self.version

    def cuMemcpyBatchAsync(self, dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, hStream):
        for name, given, kind in (
            ("srcs", srcs, CUdeviceptr),
            ("dsts", dsts, CUdeviceptr),
            ("sizes", sizes, int),
            ("attrs", attrs, CUmemcpyAttributes),
            ("attrsIdxs", attrsIdxs, int),
        ):
            if not all(type(one) is kind for one in given):
                raise TypeError(f"Argument '{name}' is not instance of type")
        if any(count > len(given) for given in (dsts, srcs, sizes)) or numAttrs > len(attrs):
            raise RuntimeError("List is too small")
        orders = {int(one.srcAccessOrder) for one in attrs}
        wrong = not count or not hStream or attrsIdxs[0] != 0 or not orders <= {1, 2, 3}
        if wrong:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        self.calls.append((count, hStream))
        if self.result == CUresult.CUDA_SUCCESS:
            for target, source, size in zip(dsts, srcs, sizes, strict=True):
                self._execute(int(target), int(source), size, hStream)
        return (self.result,)
