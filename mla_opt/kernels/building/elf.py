"""What a shared library says of itself: the libraries it needs, read from its ELF headers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_DYNAMIC = struct.Struct("<qQ")
_LOAD, _DYNAMIC_SEGMENT = 1, 2
_NEEDED, _STRINGS = 1, 5


def needed_libraries(path: Path) -> tuple[str, ...]:
    """Return the names of the libraries that a 64-bit little-endian ELF library is linked with.

    Raises:
        ValueError: the file is none.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit ELF file")
    entries = list(_dynamic(data))
    strings = next((value for tag, value in entries if tag == _STRINGS), None)
    if strings is None:
        return ()
    start = _offset(data, strings)
    return tuple(_string(data, start + value) for tag, value in entries if tag == _NEEDED)


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Type, offset, address and size in the file of each segment."""
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, _, offset, address, _, length, _, _ = _PROGRAM_HEADER.unpack_from(
            data, table + index * size
        )
        yield kind, offset, address, length


def _dynamic(data: bytes) -> Iterator[tuple[int, int]]:
    for kind, offset, _, length in _segments(data):
        if kind == _DYNAMIC_SEGMENT:
            yield from _DYNAMIC.iter_unpack(data[offset : offset + length])


def _offset(data: bytes, address: int) -> int:
    for kind, offset, start, length in _segments(data):
        if kind == _LOAD and start <= address < start + length:
            return offset + address - start
    raise ValueError("an address in no segment")


def _string(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()
