"""The matrix unit of the processor (AMX): matrices of 16 rows of 64 bytes, eight of them.

A thread that computes with them calls :func:`begin_matrices` first and :func:`end_matrices` last,
which leaves the unit as it was found: other libraries of the process use it too. Importing this
imports Numba. Addresses are int64 and are not checked.
(Intel Architecture Instruction Set Extensions Programming Reference, chapter 3.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from sagellm_backend.cpu.compiled.matrix_words import LINE, SIDE, STATE
from sagellm_backend.cpu.compiled.vector_code import address_of
from sagellm_backend.cpu.compiled.vectors import operation

_I8, _I64 = ir.IntType(8), ir.IntType(64)


def _call(builder: Any, name: str, *arguments: Any) -> None:
    full = f"llvm.x86.{name}"
    kind = ir.FunctionType(ir.VoidType(), [each.type for each in arguments])
    function = builder.module.globals.get(full) or ir.Function(builder.module, kind, full)
    builder.call(function, arguments)


def clear(builder: Any, matrix: int) -> None:
    """Make a matrix all zeros."""
    _call(builder, "tilezero", _I8(matrix))


def read_matrix(builder: Any, matrix: int, address: Any, stride: Any) -> None:
    """Rows that are ``stride`` bytes apart to a matrix."""
    _call(builder, "tileloadd64", _I8(matrix), address_of(builder, address, _I8), stride)


def write_matrix(builder: Any, matrix: int, address: Any, stride: Any) -> None:
    """A matrix to rows that are ``stride`` bytes apart."""
    _call(builder, "tilestored64", _I8(matrix), address_of(builder, address, _I8), stride)


def multiply_int8(builder: Any, total: int, a: int, b: int) -> None:
    """Add the products of int8: ``total[m, n] += a[m, 4 * k + i] * b[k, 4 * n + i]`` in int32."""
    _call(builder, "tdpbssd", _I8(total), _I8(a), _I8(b))


def multiply_bf16(builder: Any, total: int, a: int, b: int) -> None:
    """Add the products of bf16: ``total[m, n] += a[m, 2 * k + i] * b[k, 2 * n + i]`` in fp32."""
    _call(builder, "tdpbf16ps", _I8(total), _I8(a), _I8(b))


def begin_with(widths: list[int]) -> Callable[..., None]:
    """``begin(builder, place, rows)``: keep the shapes that the matrices have at a place of STATE bytes,
    and give them rows of so many bytes; ``rows`` has how many in its bytes.
    """
    words = struct.unpack("<6Q", struct.pack("<16B8H16x", 1, *[0] * 15, *widths))

    def begin(builder: Any, place: Any, rows: Any) -> None:
        _call(builder, "sttilecfg", address_of(builder, place, _I8))
        own = builder.add(place, _I64(STATE // 2))
        for number, word in enumerate([*map(_I64, words), rows, _I64(0)]):
            target = address_of(builder, builder.add(own, _I64(8 * number)), _I64)
            builder.store(word, target, align=8)
        _call(builder, "ldtilecfg", address_of(builder, own, _I8))

    return begin


_begin_whole = begin_with([LINE] * 8)


@operation(types.void, types.int64)
def begin_matrices(builder: Any, place: Any) -> None:
    """Keep the shapes that the matrices have at a place of STATE bytes, and make them all whole."""
    _begin_whole(builder, place, _I64(int.from_bytes([SIDE] * 8, "little")))


@operation(types.void, types.int64)
def end_matrices(builder: Any, place: Any) -> None:
    """Give the matrices the shapes that are kept there, or none if they had none."""
    _call(builder, "ldtilecfg", address_of(builder, place, _I8))
