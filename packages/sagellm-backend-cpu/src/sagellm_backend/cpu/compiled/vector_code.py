"""Vectors of fp32 as LLVM has them: how to read, widen, multiply and add them up.

LLVM's own vectoriser neither shares what was loaded between several sums nor adds up several
vectors at once; kernels that live of these say what they want. All functions take a builder of
llvmlite and its values; addresses are int64 and are not checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir

_I8, _I16, _I32, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()

LANES = 16 if llvm.get_host_cpu_features().get("avx512f") else 8
"""fp32 numbers in a vector: as many as a register of this processor has."""

BYTES = 4 * LANES

FLOATS, INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_I32, LANES)


def constant(value: float) -> Any:
    """A number in all lanes."""
    return ir.Constant(FLOATS, [value] * LANES)


def whole(value: int) -> Any:
    """An integer in all lanes."""
    return ir.Constant(INTS, [value] * LANES)


def spread(builder: Any, value: Any) -> Any:
    """A scalar in all lanes of a vector."""
    kind = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    zeros = ir.Constant(INTS, [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def address_of(builder: Any, address: Any, kind: Any) -> Any:
    """The pointer to a value of an LLVM type."""
    return builder.inttoptr(address, kind.as_pointer())


def read(builder: Any, address: Any) -> Any:
    """LANES fp32."""
    return builder.load(address_of(builder, address, FLOATS), align=4)


def write(builder: Any, address: Any, value: Any) -> None:
    """A vector of any length."""
    builder.store(value, address_of(builder, address, value.type), align=4)


def read_parts(builder: Any, dtype: str, address: Any, parts: int, mask: Any = None) -> list[Any]:
    """Vectors of numbers of a dtype, as fp32: several, or one with a mask.

    What the mask hides is zero, and is not read. Pairs of bf16 come as :func:`place` says: numbers
    lie two in a word there, and two vectors of them are got by one instruction each.
    """
    if dtype == "bf16" and parts > 1:
        high, found = whole(-(1 << 16)), []
        for part in range(0, parts, 2):
            words = _load(builder, builder.add(address, ir.IntType(64)(part * LANES * 2)), _I32)
            both = builder.shl(words, whole(16)), builder.and_(words, high)
            found += [builder.bitcast(each, FLOATS) for each in both]
        return found
    element = {"fp32": _FLOAT, "fp16": ir.HalfType(), "bf16": _I16}[dtype]
    step = LANES * (4 if dtype == "fp32" else 2)
    if mask is None:
        stored = [
            _load(builder, builder.add(address, ir.IntType(64)(part * step)), element)
            for part in range(parts)
        ]
    else:
        stored = [_load_masked(builder, address, element, mask)]
    return [_widened(builder, each) for each in stored]


def _load(builder: Any, address: Any, element: Any) -> Any:
    align = 2 if element in (ir.HalfType(), _I16) else 4
    return builder.load(address_of(builder, address, ir.VectorType(element, LANES)), align=align)


def _load_masked(builder: Any, address: Any, element: Any, mask: Any) -> Any:
    kind = ir.VectorType(element, LANES)
    name, align = {_FLOAT: ("f32", 4), ir.HalfType(): ("f16", 2), _I16: ("i16", 2)}[element]
    pointer = address_of(builder, address, kind)
    full = f"llvm.masked.load.v{LANES}{name}.p0"
    signature = ir.FunctionType(kind, [pointer.type, _I32, mask.type, kind])
    function = builder.module.globals.get(full) or ir.Function(builder.module, signature, full)
    return builder.call(function, [pointer, _I32(align), mask, ir.Constant(kind, None)])


def _widened(builder: Any, value: Any) -> Any:
    if value.type.element == _FLOAT:
        return value
    if value.type.element == ir.HalfType():
        return builder.fpext(value, FLOATS)
    return builder.bitcast(builder.shl(builder.zext(value, INTS), whole(16)), FLOATS)


def prefetch_line(builder: Any, address: Any) -> None:
    """Ask for the cache line of an address, which need not be valid, for the second level."""
    pointer, number = _I8.as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
    call = builder.module.declare_intrinsic("llvm.prefetch", [pointer], kind)
    builder.call(call, [builder.inttoptr(address, pointer), _I32(0), _I32(2), _I32(1)])


def first_lanes(builder: Any, count: Any) -> Any:
    """The mask of the first ``count`` lanes."""
    numbers = ir.Constant(INTS, list(range(LANES)))
    return builder.icmp_signed("<", numbers, spread(builder, builder.trunc(count, _I32)))


def multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:
    """``a * b + total``, in one instruction where the processor has it."""
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), total, flags=("contract",))


def transposed(builder: Any, vectors: list[Any]) -> list[Any]:
    """Of as many vectors as lanes: the first lanes of all as a vector, the second ones ..."""
    count, found, span = len(vectors), list(vectors), 1
    kind = ir.VectorType(_I32, count)
    while span < count:
        kept = [lane if not lane & span else lane - span + count for lane in range(count)]
        moved = [lane + span if not lane & span else lane + count for lane in range(count)]
        for low in (number for number in range(count) if not number & span):
            a, b = found[low], found[low + span]
            found[low], found[low + span] = (
                builder.shuffle_vector(a, b, ir.Constant(kind, lanes)) for lanes in (kept, moved)
            )
        span *= 2
    return found


def sums(builder: Any, vectors: list[Any], flags: tuple[str, ...] = ()) -> Any:
    """The vector whose lane ``i`` is the sum of the lanes of ``vectors[i]``, of as many as lanes.

    Of any floating type; additions have LLVM's ``flags``.
    """
    count = len(vectors)
    bits, kind = count.bit_length() - 1, ir.VectorType(_I32, count)
    order = [int(f"{lane:0{bits}b}"[::-1], 2) for lane in range(count)]
    level, span = [vectors[lane] for lane in order], count // 2
    while span:
        kept = [lane if not lane & span else lane + count for lane in range(count)]
        moved = [lane + span if not lane & span else lane - span + count for lane in range(count)]
        # One half of each vector stays where it is, which costs less than to move both.
        halves = [
            [builder.shuffle_vector(a, b, ir.Constant(kind, lanes)) for lanes in (kept, moved)]
            for a, b in zip(level[::2], level[1::2], strict=True)
        ]
        level = [builder.fadd(a, b, flags) for a, b in halves]
        span //= 2
    return level[0]
