"""Machine code as one block that runs wherever it is mapped.

An object file of LLVM needs a linker. Kernels call nothing and refer to their own constants only,
by distances, so what is left of linking is to lay the sections out and fill the distances in. Code
that needs more is refused. (System V ABI, AMD64 supplement, section 4.4.)
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import Any, NamedTuple

_ALLOCATED = 0x2
_NO_BITS, _SYMBOLS, _RELOCATIONS = 8, 2, 4
_PC32, _PLT32 = 2, 4
_ALIGNMENT = 64
_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Section(NamedTuple):
    """A header of the section table, as ELF64 has it."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def link(code: bytes, entry: str) -> bytes:
    """The image of an object file: the offset of its entry in 8 bytes, and the code behind.

    Raises :class:`ValueError` for an object that refers to anything outside of itself.
    """
    offset, count = struct.unpack_from("<Q", code, 40)[0], struct.unpack_from("<H", code, 60)[0]
    sections = [
        _Section(*struct.unpack_from("<IIQQQQIIQQ", code, offset + 64 * n)) for n in range(count)
    ]
    image, places = bytearray(8), {}
    for number, section in enumerate(sections):
        if section.flags & _ALLOCATED and section.kind != _NO_BITS and section.size:
            if section.alignment > _ALIGNMENT:
                raise ValueError(f"a section asks for an alignment of {section.alignment}")
            image.extend(bytes(-len(image) % _ALIGNMENT))
            places[number] = len(image)
            image.extend(code[section.offset : section.offset + section.size])
    table = next(section for section in sections if section.kind == _SYMBOLS)
    names = code[sections[table.link].offset :]
    symbols = [
        struct.unpack_from("<IBBHQQ", code, at)
        for at in range(table.offset, table.offset + table.size, 24)
    ]
    for section in sections:
        if section.kind == _RELOCATIONS and section.info in places:
            _relocate(image, places, symbols, code, section)
    for name, _, _, home, value, _ in symbols:
        if names[name : names.index(b"\0", name)] == entry.encode():
            struct.pack_into("<Q", image, 0, places[home] + value)
            return bytes(image)
    raise ValueError(f"the object has no function {entry}")


def _relocate(
    image: bytearray,
    places: dict[int, int],
    symbols: list[tuple[int, ...]],
    code: bytes,
    section: _Section,
) -> None:
    for at in range(section.offset, section.offset + section.size, 24):
        where, info, addend = struct.unpack_from("<QQq", code, at)
        home, value = symbols[info >> 32][3], symbols[info >> 32][4]
        if info & 0xFFFFFFFF not in {_PC32, _PLT32} or home not in places:
            raise ValueError(f"a relocation of kind {info & 0xFFFFFFFF} leads outside of the code")
        position = places[section.info] + where
        struct.pack_into("<i", image, position, places[home] + value + addend - position)


def load(image: bytes) -> Any:
    """The function of an image, which takes the address of its words and lives as long as its code.

    Raises :class:`OSError` where this process may not make memory executable.
    """
    mapping = mmap.mmap(-1, len(image), prot=mmap.PROT_READ | mmap.PROT_WRITE)
    mapping.write(image)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if protect(address, len(image), mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "memory may not be made executable")
    function: Any = _FUNCTION(address + struct.unpack_from("<Q", image)[0])
    function.mapping = mapping
    return function
