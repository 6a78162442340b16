"""Few rows times a weight: the weight is read once for every eight rows, at the speed of memory.

A tile of the result is some rows by some outputs. Its sums are vectors of fp32 in registers, and
what the lanes of a sum hold is added up at its end, in an order that no number of rows changes. The
outputs of a tile lie far apart: a processor fetches ahead within each page that is read, so that
several pages at once come faster than one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic

from sagellm_backend.cpu.compiled.storage import BITS, next_chunk, word
from sagellm_backend.cpu.compiled.vector_code import (
    FLOATS,
    INTS,
    LANES,
    multiply_add,
    prefetch_line,
)
from sagellm_backend.cpu.compiled.vectors import jit

cgutils: Any = _cgutils  # which says nothing of its types

AHEAD = 4096
"""Bytes between what is read of an output and what is asked for."""

PAIRS = LANES == 16 and bool(llvm.get_host_cpu_features().get("avx512bf16"))
"""Whether the processor multiplies pairs of bf16, which is faster for up to four rows."""

_LINE = 64
_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))
_FLOAT = ir.FloatType()
_FUSED = ("contract",)  # a flag of its own keeps Numba from letting LLVM reorder an instruction


def x_bytes(dtype: str) -> int:
    """Bytes of a number of x."""
    return 2 if dtype == "bf16" else 4


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bf16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


class _Tile:
    """The code of one tile. ``place`` holds x, weight, bias or 0, y, inputs, all outputs, and how
    many outputs are from one of the tile to the next.
    """

    def __init__(self, builder: Any, dtype: str, rows: int, outputs: int, place: Any) -> None:
        self.builder, self.bits = builder, BITS[dtype]
        self.nbytes = self.bits.width // 8
        self.rows, self.outputs = rows, outputs
        self.x, self.weight, self.bias, self.y, self.inputs, self.all_outputs, apart = place
        self.pairs, self.wide = PAIRS and dtype == "bf16", x_bytes(dtype)
        self.count = 2 * LANES if self.pairs else LANES
        self.places = [builder.mul(apart, _I64(output)) for output in range(outputs)]
        cells = [(row, output) for row in range(rows) for output in range(outputs)]
        zero = ir.Constant(FLOATS, None)
        self.sums = {cell: cgutils.alloca_once(builder, FLOATS) for cell in cells}
        for total in self.sums.values():
            builder.store(zero, total)

    def multiply(self) -> None:
        """Sum up over the inputs."""
        builder = self.builder
        full = builder.and_(self.inputs, _I64(-self.count))
        with cgutils.for_range_slice(builder, _I64(0), full, _I64(self.count)) as (index, _):
            self._step(index)
        left = builder.sub(self.inputs, full)
        with builder.if_then(builder.icmp_signed(">", left, _I64(0))):
            kind = ir.VectorType(_I32, self.count)
            one = builder.insert_element(
                ir.Constant(kind, ir.Undefined), builder.trunc(left, _I32), _I32(0)
            )
            limit = builder.shuffle_vector(
                one, ir.Constant(kind, ir.Undefined), ir.Constant(kind, None)
            )
            numbers = ir.Constant(kind, list(range(self.count)))
            self._step(full, builder.icmp_signed("<", numbers, limit))

    def _step(self, index: Any, mask: Any = None) -> None:
        builder, nbytes = self.builder, self.nbytes
        weights = [self._numbers(self.weight, row, index, nbytes, mask) for row in self.places]
        if self.rows > 2 or nbytes == 2:  # few rows of fp32 were read faster without
            self._fetch(index)
        for row in range(self.rows):
            x = self._numbers(self.x, _I64(row), index, self.wide, mask)
            for output, weight in enumerate(weights):
                total = self.sums[row, output]
                builder.store(self._add(x, weight, builder.load(total)), total)

    def _fetch(self, index: Any) -> None:
        """Ask for what later tiles read: few pages at once are not fetched ahead fast enough."""
        builder = self.builder
        place = builder.add(builder.add(self.weight, self._bytes(index)), _I64(AHEAD))
        for output in self.places:
            start = builder.add(place, self._bytes(builder.mul(self.inputs, output)))
            for line in range(0, self.count * self.nbytes, _LINE):
                prefetch_line(builder, builder.add(start, _I64(line)))

    def _bytes(self, count: Any) -> Any:
        return self.builder.mul(count, _I64(self.nbytes))

    def _numbers(self, base: Any, row: Any, index: Any, nbytes: int, mask: Any) -> Any:
        """Numbers of a row of x or the weight, which has ``inputs`` of so many bytes."""
        builder = self.builder
        element = _FLOAT if nbytes == 4 else _I16
        kind = ir.VectorType(element, self.count)
        place = builder.add(builder.mul(self.inputs, row), index)
        address = builder.add(base, builder.mul(place, _I64(nbytes)))
        pointer = builder.inttoptr(address, kind.as_pointer())
        if mask is None:
            found = builder.load(pointer, align=nbytes)
        else:
            name = f"llvm.masked.load.v{self.count}{'f32' if nbytes == 4 else 'i16'}.p0"
            signature = ir.FunctionType(kind, [pointer.type, _I32, mask.type, kind])
            function = cgutils.get_or_insert_function(builder.module, signature, name)
            arguments = [pointer, _I32(nbytes), mask, ir.Constant(kind, None)]
            found = builder.call(function, arguments)
        return found if nbytes == 4 or self.pairs else self.bits.widen(builder, found)

    def _add(self, a: Any, b: Any, total: Any) -> Any:
        """``a * b + total``, of bf16 by pairs."""
        builder = self.builder
        if not self.pairs:
            return multiply_add(builder, a, b, total)
        kind = ir.VectorType(BFloat(), self.count)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(FLOATS, [FLOATS, kind, kind]),
            "llvm.x86.avx512bf16.dpbf16ps.512",
        )
        return builder.call(function, [total, builder.bitcast(a, kind), builder.bitcast(b, kind)])

    def finish(self) -> None:
        """Add the lanes of each sum up, and its bias, and write it."""
        builder, nbytes = self.builder, self.nbytes
        kind = ir.IntType(self.bits.width)
        given = builder.icmp_signed("!=", self.bias, _I64(0))
        for output, at in enumerate(self.places):
            bias = cgutils.alloca_once_value(builder, _FLOAT(0))
            builder.store(_FLOAT(0), bias)
            with builder.if_then(given):
                place = builder.add(self.bias, self._bytes(at))
                pointer = builder.inttoptr(place, kind.as_pointer())
                found = builder.load(pointer, align=nbytes)
                builder.store(self.bits.widen(builder, found), bias)
            for row in range(self.rows):
                total = builder.fadd(self._across(self.sums[row, output]), builder.load(bias))
                place = builder.add(builder.mul(self.all_outputs, _I64(row)), at)
                pointer = builder.inttoptr(
                    builder.add(self.y, self._bytes(place)), kind.as_pointer()
                )
                builder.store(self.bits.narrow(builder, total), pointer, align=nbytes)

    def _across(self, place: Any) -> Any:
        builder, span = self.builder, LANES // 2
        vector = builder.load(place)
        while span:
            lanes = ir.Constant(INTS, [(lane + span) % LANES for lane in range(LANES)])
            moved = builder.shuffle_vector(vector, ir.Constant(FLOATS, ir.Undefined), lanes)
            vector = builder.fadd(vector, moved, _FUSED)
            span //= 2
        return builder.extract_element(vector, _I32(0))


def _tile(dtype: str, rows: int, outputs: int) -> Any:
    """The function that computes one tile."""

    @intrinsic
    def tile(
        context: Any,
        x: Any,
        weight: Any,
        bias: Any,
        y: Any,
        inputs: Any,
        all_outputs: Any,
        apart: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            made = _Tile(builder, dtype, rows, outputs, args)
            made.multiply()
            made.finish()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return tile


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for weights of a dtype.

    Words: counter, x (rows, inputs), weight (outputs, inputs), bias or 0, y (rows, outputs), rows,
    inputs, outputs, outputs in a chunk. All is contiguous and of ``dtype``, but x of fp16 is fp32;
    sums are in fp32.
    """
    eight, four = _tile(dtype, 8, 3), _tile(dtype, 4, 4)
    two, one, single = _tile(dtype, 2, 8), _tile(dtype, 1, 8), _tile(dtype, 1, 1)
    nbytes = BITS[dtype].width // 8
    wide = x_bytes(dtype)

    @jit
    def strip(
        x: int, w: int, bias: int, y: int, inputs: int, outputs: int, rows: int, count: int
    ) -> int:
        """As many rows as a tile has, by ``count`` outputs; how many outputs that was for."""
        width = 3 if rows >= 8 else 4 if rows >= 4 else 8
        apart = count // width
        for number in range(apart):
            b = bias + number * nbytes if bias else 0
            p, q = w + number * inputs * nbytes, y + number * nbytes
            if rows >= 8:
                eight(x, p, b, q, inputs, outputs, apart)
            elif rows >= 4:
                four(x, p, b, q, inputs, outputs, apart)
            elif rows >= 2:
                two(x, p, b, q, inputs, outputs, apart)
            else:
                one(x, p, b, q, inputs, outputs, apart)
        return width * apart

    @jit
    def rest(
        x: int, w: int, bias: int, y: int, inputs: int, outputs: int, rows: int, count: int
    ) -> None:
        """Rows by outputs, one by one."""
        for output in range(count):
            b = bias + output * nbytes if bias else 0
            for row in range(rows):
                p, q = x + row * inputs * wide, y + (row * outputs + output) * nbytes
                single(p, w + output * inputs * nbytes, b, q, inputs, outputs, 1)

    def row_linear(words: int) -> None:
        x, weight, bias, y = word(words, 1), word(words, 2), word(words, 3), word(words, 4)
        rows, inputs = word(words, 5), word(words, 6)
        outputs, size = word(words, 7), word(words, 8)
        while True:
            first = next_chunk(words) * size
            if first >= outputs:
                return
            count, row = min(size, outputs - first), 0
            w, b = weight + first * inputs * nbytes, bias + first * nbytes if bias else 0
            while row < rows:
                left = rows - row
                step = 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
                p, q = x + row * inputs * wide, y + (row * outputs + first) * nbytes
                done = strip(p, w, b, q, inputs, outputs, step, count)
                c, r = b + done * nbytes if bias else 0, q + done * nbytes
                rest(p, w + done * inputs * nbytes, c, r, inputs, outputs, step, count - done)
                row += step

    return row_linear
