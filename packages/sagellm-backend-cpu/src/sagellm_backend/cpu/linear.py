"""Linear over packed weights: a copy in oneDNN's blocked layout, made once and kept with its weight.

``F.linear`` reorders a half-precision weight at every call, and multiplies few rows of fp32 by a
kernel made for many. Few rows need no copy: ``few_rows.py`` has them. :data:`RULES` says where the
packed copy is faster; it was measured by ``benchmarks/linear.py``, whose README has the figures.
"""

from __future__ import annotations

import ctypes
import platform
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.parameter import Parameter

from sagellm_backend.cpu import capturing, few_rows, machine
from sagellm_backend.errors import OutOfMemoryError
from sagellm_backend.memory import MemoryLedger
from sagellm_backend.torch_support.misuse import FLOATING, MisuseError


class Rule(NamedTuple):
    """Where packing pays, both ends included."""

    rows: tuple[int, int]
    min_elements: int
    max_inputs: int


RULES: dict[torch.dtype, Rule] = {
    torch.float32: Rule((13, 32), 1 << 21, 1 << 30),
    torch.bfloat16: Rule((5, 128), 1 << 16, 2048),
}
"""By dtype, where packing was measured to gain enough to be worth a second copy of the weight."""

SMALLEST = min(rule.min_elements for rule in RULES.values())
"""Weights of fewer elements are never looked up."""

SPARE = 4
"""Packing leaves one part in so many of the memory free."""

_SAMPLE = 64
_FP32, _linear, _grad_enabled = torch.float32, functional.linear, torch.is_grad_enabled


@cache
def dtypes() -> frozenset[torch.dtype]:
    """The dtypes that this processor and this torch multiply packed weights in; may be empty.

    The rules were measured on x86 with AVX-512 and AMX; other processors get ``F.linear``.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    if not torch.backends.cpu.get_cpu_capability().startswith(("AVX512", "AMX")):
        return frozenset()
    needed = ("_linear_pointwise", "_reorder_linear_weight", "_nbytes")
    if not torch.backends.mkldnn.is_available() or None in map(_operator, needed):
        return frozenset()
    found = {torch.float32}
    for dtype, name in (
        (torch.bfloat16, "_is_mkldnn_bf16_supported"),
        (torch.float16, "_is_mkldnn_fp16_supported"),
    ):
        supported = _operator(name)
        if supported is not None and supported():
            found.add(dtype)
    return frozenset(found)


def _operator(name: str) -> Callable[..., Any] | None:
    """An operator of torch's private namespace for oneDNN; ``None`` where this torch has none."""
    found = getattr(torch.ops.mkldnn, name, None)
    return None if found is None else getattr(found, "default", None)


class PackedLinear:
    """The operation ``linear`` with a cache of packed weights. Thread-safe.

    A weight is packed by the second call, or the first after that which gains from it, so what is
    used once never pays. The copy is kept for that tensor object: it goes when the object dies, when
    torch counts a write to it (its version), when its memory, size or strides change, and at
    :meth:`clear`. Writes that torch does
    not count, through ``.data``, a NumPy view or another library, are looked for in two samples of
    64 bytes at every call; one that leaves both as they were is seen only after :meth:`clear`.
    Tensors made in inference mode count no writes and are never packed, nor is what is not
    contiguous or needs a gradient.

    Copies are reserved in ``ledger()``. Where they would leave less than a quarter of the limit or
    of the machine's memory free, the weight stays as it is.
    """

    def __init__(self, ledger: Callable[[], MemoryLedger]) -> None:
        multiply, reorder, nbytes = map(
            _operator, ("_linear_pointwise", "_reorder_linear_weight", "_nbytes")
        )
        assert multiply is not None
        assert reorder is not None
        assert nbytes is not None
        self._multiply, self._reorder, self._nbytes = multiply, reorder, nbytes
        self._ledger = ledger
        self._rules = {dtype: rule for dtype, rule in RULES.items() if dtype in dtypes()}
        self._entries: dict[int, _Entry] = {}
        self._packing = threading.Lock()

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``x @ weight.T + bias`` accumulated in fp32: packed where that is faster.

        Rows of one input may differ in their last bits between numbers of rows, as they do in
        ``F.linear``.
        """
        size = weight.numel()
        if size >= SMALLEST:
            few = few_rows.linear(x, weight, bias)
            if few is not None:
                return few
            if (
                capturing.recording is not None and capturing.mine()
            ):  # a replay looks anew at whether the copy is good
                result: Tensor | None = capturing.call(self.linear, x, weight, bias)
                assert result is not None
                return result
            entry = self._entries.get(id(weight))
            if entry is None:
                self._notice(weight)
            elif entry.low <= x.numel() <= entry.high and entry.serves(x, weight, bias):
                result = self._over_packed(entry, x, weight, bias)
                if result is not None:
                    return result
        # The checks of the plain operation, without the call: small weights end here every time.
        dtype = weight.dtype
        if weight.dim() != 2 or not size or not (dtype is _FP32 or dtype in FLOATING):
            raise MisuseError
        if bias is not None:
            if bias.shape != weight.shape[:1]:
                raise MisuseError
            x = x.contiguous()  # to strided rows torch adds the bias after rounding their product
        return _linear(x, weight, bias)

    def clear(self, *, for_good: bool = False) -> None:
        """Drop every copy; weights are packed anew on their second use, unless ``for_good``."""
        if for_good:
            self._rules = {}
        for key in list(self._entries):
            _drop(self._entries, key)

    def _over_packed(
        self, entry: _Entry, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor | None:
        """The result over the packed copy; ``None`` where there is none, or it does not fit."""
        if not entry.describes(weight):
            _drop(self._entries, id(weight))
            return None
        if entry.packed is None:
            self._try_packing(entry, weight)
        packed = entry.packed
        if packed is None:
            return None
        try:
            result: Tensor = self._multiply(x, packed, bias, "none", [], "")
        except RuntimeError:
            return None  # misuse, which the plain operation names
        return result

    def _notice(self, weight: Tensor) -> None:
        """Remember a weight that could be packed: the next use that gains by it will pack it."""
        rule = self._rules.get(weight.dtype)
        if rule is None or weight.numel() < rule.min_elements or weight.dim() != 2:
            return
        if type(weight) not in (Tensor, Parameter) or weight.device.type != "cpu":
            return
        if weight.layout is not torch.strided or weight.is_inference():
            return
        if weight.shape[1] > rule.max_inputs or not weight.is_contiguous():
            return
        # Another thread may have been here meanwhile, and its entry may have a copy by now.
        self._entries.setdefault(id(weight), _Entry(weight, rule, self._entries))

    def _try_packing(self, entry: _Entry, weight: Tensor) -> None:
        # A thread that comes while another packs computes the plain way, and never waits.
        if not self._packing.acquire(blocking=False):
            return
        try:
            if entry.packed is None:
                self._pack(entry, weight)
        finally:
            self._packing.release()

    def _pack(self, entry: _Entry, weight: Tensor) -> None:
        ledger = self._ledger()
        if not _has_room(ledger, weight.nbytes):
            entry.high = -1
            return
        with torch.no_grad():
            packed = self._reorder(weight.detach())
        nbytes = self._nbytes(packed)
        try:
            ledger.reserve(nbytes)
        except OutOfMemoryError:
            entry.high = -1
            return
        entry.charges.append((ledger, nbytes))
        entry.packed = packed
        # What was written or dropped in the meantime did not see this copy.
        if self._entries.get(id(weight)) is not entry or not entry.describes(weight):
            entry.packed = None
            entry.release()


class _Entry:
    """What is known of one weight. Holds neither the tensor nor its memory."""

    __slots__ = (
        "_address",
        "_contents",
        "_dtype",
        "_first",
        "_middle",
        "_size",
        "_version",
        "_weight",
        "charges",
        "high",
        "low",
        "packed",
    )

    def __init__(self, weight: Tensor, rule: Rule, entries: dict[int, _Entry]) -> None:
        key, inputs = id(weight), weight.shape[1]
        # In elements of the input: dividing by its width at every call would cost more.
        self.low, self.high = rule.rows[0] * inputs, rule.rows[1] * inputs
        self.charges: list[tuple[MemoryLedger, int]] = []
        self.packed: Tensor | None = None
        self._weight = weakref.ref(weight, lambda _: _drop(entries, key))
        self._version = weight._version  # noqa: SLF001
        self._size, self._dtype = weight.numel(), weight.dtype
        self._address = weight.data_ptr()
        half = weight.nbytes // 2
        self._first = (ctypes.c_char * _SAMPLE).from_address(self._address)
        self._middle = (ctypes.c_char * _SAMPLE).from_address(self._address + half)
        self._contents = (self._first.raw, self._middle.raw)

    def serves(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        """Whether oneDNN does with these arguments what the operation does."""
        # It mixes dtypes, knows no gradients, and reads a bias as if it were contiguous.
        dtype = self._dtype
        if x.dtype is not dtype:
            return False
        if bias is not None and not (
            bias.dtype is dtype and bias.shape == weight.shape[:1] and bias.is_contiguous()
        ):
            return False
        if not _grad_enabled():
            return True
        needs = x.requires_grad or weight.requires_grad
        return not (needs or (bias is not None and bias.requires_grad))

    def describes(self, weight: Tensor) -> bool:
        """Whether ``weight`` is the one that was seen, as it was then."""
        return (
            self._weight() is weight
            and weight._version == self._version  # noqa: SLF001 - torch has no other name for it
            and weight.data_ptr() == self._address
            and weight.numel() == self._size
            and weight.is_contiguous()
            and (self._first.raw, self._middle.raw) == self._contents
        )

    def release(self) -> None:
        """Give the reservation back, once, whichever thread comes first."""
        try:
            ledger, nbytes = self.charges.pop()
        except IndexError:
            return
        ledger.unreserve(nbytes)


def _drop(entries: dict[int, _Entry], key: int) -> None:
    # Garbage collection calls this in the midst of anything, so it takes no lock of ours.
    entry = entries.pop(key, None)
    if entry is not None:
        entry.packed = None
        entry.release()


def _has_room(ledger: MemoryLedger, nbytes: int) -> bool:
    own = ledger.stats(device_total=0, device_free=0)
    limit = own["limit_bytes"]
    if nbytes + limit // SPARE > limit - own["reserved_bytes"]:
        return False
    total, free = machine.memory()
    return not total or nbytes + total // SPARE <= free
