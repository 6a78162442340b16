"""Rows times an int8 or int4 weight: the weight is read once for every four rows.

A tile of the result is some rows by some outputs. Its sums are vectors of fp32 in registers, each
weight is widened once in a tile, and what the lanes of a sum hold is added up at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils as _cgutils
from numba.extending import intrinsic

from sagellm_backend.cpu.compiled.storage import next_chunk, word

cgutils: Any = _cgutils  # which says nothing of its types

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
"""fp32 numbers in a vector. Groups of int4 are multiples of twice as many."""

_LINE = 64
_WIDE = 2048  # inputs from which eight rows of a weight were slower to read at a time than four
_I8, _I32, _I64, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_BYTES, _INTS = ir.VectorType(_I8, LANES), ir.VectorType(_I32, LANES)
_FUSED = ("contract",)  # a flag of its own keeps Numba from letting LLVM reorder an instruction


class _Tile:
    """The code of one tile: the addresses of its parts, and its sums.

    ``place`` holds x, weight, scale, zero, step of zero, bias, y, inputs, outputs, groups.
    """

    def __init__(self, builder: Any, rows: int, outputs: int, place: Any) -> None:
        self.builder, self.rows, self.outputs = builder, rows, outputs
        self.x, self.weight, self.scale, self.zero, self.step = place[:5]
        self.bias, self.y, self.inputs, self.all_outputs, self.groups = place[5:]
        self.cells = [(row, output) for row in range(rows) for output in range(outputs)]
        self.sums = self.zeros()

    def zeros(self) -> dict[tuple[int, int], Any]:
        """A vector in memory for each cell, which LLVM keeps in a register."""
        return {
            cell: cgutils.alloca_once_value(self.builder, ir.Constant(_FLOATS, None))
            for cell in self.cells
        }

    def read(self, address: Any, kind: Any, index: Any, mask: Any = None) -> Any:
        """A value of an LLVM type from an element of memory on; lanes that ``mask`` leaves out are 0."""
        builder = self.builder
        element = getattr(kind, "element", kind)
        pointer = builder.gep(builder.inttoptr(address, element.as_pointer()), [index])
        pointer = builder.bitcast(pointer, kind.as_pointer())
        align = 1 if element is _I8 else 4
        if mask is None:
            return builder.load(pointer, align=align)
        name = f"llvm.masked.load.v{LANES}{'i8' if element is _I8 else 'f32'}.p0"
        signature = ir.FunctionType(kind, [pointer.type, _I32, mask.type, kind])
        function = cgutils.get_or_insert_function(builder.module, signature, name)
        return builder.call(function, [pointer, _I32(align), mask, ir.Constant(kind, None)])

    def spread(self, value: Any) -> Any:
        """A scalar in all lanes."""
        kind = ir.VectorType(value.type, LANES)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
        return self.builder.shuffle_vector(
            one, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, None)
        )

    def x_at(self, row: int, index: Any, mask: Any = None) -> Any:
        """Numbers of a row of x."""
        start = self.builder.mul(self.inputs, _I64(row))
        return self.read(self.x, _FLOATS, self.builder.add(start, index), mask)

    def fetch(self, index: Any, nbytes: Any) -> None:
        """Ask for what the next tile reads where this one reads ``index``: a burst would stall."""
        builder, pointer = self.builder, _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        call = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
        place = builder.mul(builder.add(nbytes, index), _I64(self.outputs))
        place = builder.add(self.weight, place)
        for line in range(max(1, self.outputs * LANES // _LINE)):
            address = builder.inttoptr(builder.add(place, _I64(line * _LINE)), pointer)
            builder.call(call, [address, _I32(0), _I32(2), _I32(1)])

    def add(self, sums: Any, cell: tuple[int, int], a: Any, b: Any) -> None:
        """Add ``a * b`` to the sum of a cell."""
        builder = self.builder
        product = builder.fmul(a, b, _FUSED)
        builder.store(builder.fadd(product, builder.load(sums[cell]), _FUSED), sums[cell])

    def int8(self) -> None:
        """Sum up over an int8 weight."""
        builder = self.builder
        full = builder.and_(self.inputs, _I64(-LANES))
        with cgutils.for_range_slice(builder, _I64(0), full, _I64(LANES)) as (index, _):
            self._int8_step(index)
        left = builder.sub(self.inputs, full)
        with builder.if_then(builder.icmp_signed(">", left, _I64(0))):
            numbers = ir.Constant(_INTS, list(range(LANES)))
            count = self.spread(builder.trunc(left, _I32))
            self._int8_step(full, builder.icmp_signed("<", numbers, count))

    def _int8_step(self, index: Any, mask: Any = None) -> None:
        builder = self.builder
        self.fetch(index, self.inputs)
        x = [self.x_at(row, index, mask) for row in range(self.rows)]
        for output in range(self.outputs):
            start = builder.mul(self.inputs, _I64(output))
            raw = self.read(self.weight, _BYTES, builder.add(start, index), mask)
            weight = builder.sitofp(raw, _FLOATS)
            for row in range(self.rows):
                self.add(self.sums, (row, output), x[row], weight)

    def int4(self) -> None:
        """Sum up over an int4 weight, group by group; x has its even inputs first."""
        builder = self.builder
        half = builder.lshr(self.inputs, _I64(1))
        size = builder.sdiv(half, self.groups)
        with cgutils.for_range(builder, self.groups) as group:
            parts = self.zeros()
            for part in parts.values():
                builder.store(ir.Constant(_FLOATS, None), part)
            first = builder.mul(group.index, size)
            scales, points = self._of_group(group.index)
            last = builder.add(first, size)
            with cgutils.for_range_slice(builder, first, last, _I64(LANES)) as (index, _):
                self._int4_step(parts, points, index, half)
            for row, output in self.cells:
                part = builder.load(parts[row, output])
                self.add(self.sums, (row, output), part, scales[output])

    def _of_group(self, group: Any) -> tuple[list[Any], list[Any]]:
        """The scales and zero points of one group, in all lanes."""
        builder, scales, points = self.builder, [], []
        for output in range(self.outputs):
            place = builder.add(builder.mul(self.groups, _I64(output)), group)
            scales.append(self.spread(self.read(self.scale, _FLOAT, place)))
            point = self.read(self.zero, _I8, builder.mul(place, self.step))
            points.append(self.spread(builder.sext(point, _I32)))
        return scales, points

    def _int4_step(self, parts: Any, points: list[Any], index: Any, half: Any) -> None:
        builder = self.builder
        self.fetch(index, half)
        even = [self.x_at(row, index) for row in range(self.rows)]
        odd = [self.x_at(row, builder.add(half, index)) for row in range(self.rows)]
        for output, point in enumerate(points):
            start = builder.mul(half, _I64(output))
            raw = builder.zext(self.read(self.weight, _BYTES, builder.add(start, index)), _INTS)
            low = builder.and_(raw, ir.Constant(_INTS, [15] * LANES))
            high = builder.lshr(raw, ir.Constant(_INTS, [4] * LANES))
            for codes, x in ((low, even), (high, odd)):
                weight = builder.sitofp(builder.sub(codes, point), _FLOATS)
                for row in range(self.rows):
                    self.add(parts, (row, output), x[row], weight)

    def finish(self, *, scaled: bool) -> None:
        """Write the sums of the lanes, times their scale where ``scaled``, and the bias."""
        builder = self.builder
        kind = ir.VectorType(_FLOAT, self.outputs)
        bias = cgutils.alloca_once_value(builder, ir.Constant(kind, None))
        builder.store(ir.Constant(kind, None), bias)
        with builder.if_then(builder.icmp_signed("!=", self.bias, _I64(0))):
            builder.store(self.read(self.bias, kind, _I64(0)), bias)
        added = builder.load(bias)
        for row in range(self.rows):
            vectors = [builder.load(self.sums[row, output]) for output in range(self.outputs)]
            total = self._across(vectors, kind)
            if scaled:
                total = builder.fmul(total, self.read(self.scale, kind, _I64(0)), _FUSED)
            total = builder.fadd(total, added, _FUSED)
            start = builder.mul(self.all_outputs, _I64(row))
            pointer = builder.gep(builder.inttoptr(self.y, _FLOAT.as_pointer()), [start])
            builder.store(total, builder.bitcast(pointer, kind.as_pointer()), align=4)

    def _across(self, vectors: list[Any], kind: Any) -> Any:
        """The sums of the lanes of each vector, of which there are 1, 2, 4 or 8, as one vector."""
        builder, span = self.builder, LANES // 2
        count = len(vectors)
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [self._fold(a, b, span) for a, b in pairs]
            span //= 2
        while span:
            vectors = [self._fold(vectors[0], vectors[0], span)]
            span //= 2
        # The first folding told neighbours apart by the highest bit of the lane, and so on.
        bits = count.bit_length() - 1
        places = [
            sum((number >> bit & 1) * (LANES >> 1 + bit) for bit in range(bits))
            for number in range(count)
        ]
        lanes = ir.Constant(ir.VectorType(_I32, count), places)
        return builder.shuffle_vector(vectors[0], ir.Constant(_FLOATS, ir.Undefined), lanes)

    def _fold(self, a: Any, b: Any, span: int) -> Any:
        """Sums of lanes ``span`` apart: of ``a`` where the bit of the span is not set, else of ``b``."""
        kept = [lane if not lane & span else lane + LANES for lane in range(LANES)]
        moved = [lane + span if not lane & span else lane - span + LANES for lane in range(LANES)]
        halves = (
            self.builder.shuffle_vector(a, b, ir.Constant(_INTS, lanes)) for lanes in (kept, moved)
        )
        return self.builder.fadd(*halves, _FUSED)


def tile_of(rows: int, outputs: int, dtype: str) -> Any:
    """The function that computes one tile."""

    @intrinsic
    def tile(
        context: Any,
        x: Any,
        weight: Any,
        scale: Any,
        zero: Any,
        step: Any,
        bias: Any,
        y: Any,
        inputs: Any,
        all_outputs: Any,
        groups: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            made = _Tile(builder, rows, outputs, args)
            for cell in made.sums.values():
                builder.store(ir.Constant(_FLOATS, None), cell)
            if dtype == "int8":
                made.int8()
            else:
                made.int4()
            made.finish(scaled=dtype == "int8")
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), generate

    return tile


def build(dtype: str) -> Callable[..., Any]:
    """The kernel for weights of int8 or int4.

    Words: counter, x (rows, inputs), weight (outputs, inputs in int8, or half as many bytes), scale
    (outputs, groups), zero (outputs, groups) in int8, bias or 0, y (rows, outputs), inputs, outputs,
    rows, groups, outputs in a chunk, 1 or for one zero point of all 0. All is contiguous, and fp32
    where nothing is said; int8 has one group and no zero points. Sums are in fp32. Of x with int4
    the even inputs of a row come first.
    """
    four_by_four, one_by_eight = tile_of(4, 4, dtype), tile_of(1, 8, dtype)
    one_by_four, one_by_one = tile_of(1, 4, dtype), tile_of(1, 1, dtype)
    packed = 1 if dtype == "int4" else 0

    def int_linear(words: int) -> None:
        x, weight, scale, zero = word(words, 1), word(words, 2), word(words, 3), word(words, 4)
        bias, y, inputs, outputs = word(words, 5), word(words, 6), word(words, 7), word(words, 8)
        rows, groups, size, step = word(words, 9), word(words, 10), word(words, 11), word(words, 12)
        nbytes = inputs >> packed
        while True:
            output = next_chunk(words) * size
            if output >= outputs:
                return
            last = min(output + size, outputs)
            while output < last:
                w = weight + output * nbytes
                s, z = scale + 4 * output * groups, zero + output * groups * step
                b = bias + 4 * output if bias else 0
                wide = 1
                if rows == 1 and inputs < _WIDE and output + 8 <= last:
                    wide = 8
                elif output + 4 <= last:
                    wide = 4
                row = 0
                while row < rows:
                    p, q = x + 4 * row * inputs, y + 4 * (row * outputs + output)
                    if wide == 8:
                        one_by_eight(p, w, s, z, step, b, q, inputs, outputs, groups)
                    elif wide == 1:
                        one_by_one(p, w, s, z, step, b, q, inputs, outputs, groups)
                    elif row + 4 <= rows:
                        four_by_four(p, w, s, z, step, b, q, inputs, outputs, groups)
                        row += 3
                    else:
                        one_by_four(p, w, s, z, step, b, q, inputs, outputs, groups)
                    row += 1
                output += wide

    return int_linear
