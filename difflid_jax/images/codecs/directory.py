"""Directories of tags in the layout of TIFF, which EXIF also uses.

Values are read, changed in place and moved as bytes, so that text in any encoding, unusual types and unknown
tags stay unchanged.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005
ORIENTATION = 0x0112
# (width, height) as recorded in the first, the EXIF and the interoperability directory.
_SIZES = ((0x0100, 0x0101), (0xA002, 0xA003), (0x1001, 0x1002))
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_BYTES |= {16: 8, 17: 8, 18: 8}
# Bytes of the numbers that a type consists of: a rational is two of four.
_NUMBER_BYTES = _TYPE_BYTES | {5: 4, 10: 4}
_INTEGERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q", 18: "Q"}
_EXIF_HEADER = b"Exif\0\0"
_MOST_ENTRIES = 4096
# The values that a reader copies may take this many times the data: a directory may be read more than once,
# and in an intact file no two values overlap.
_MOST_READ = 8


class Entry(NamedTuple):
    """A tag's type, count and value (little-endian bytes), and the position of the value in the file."""

    type: int
    count: int
    value: bytes
    position: int = 0

    def integers(self) -> tuple[int, ...]:
        """The value as integers, empty if it is of another type."""
        code = _INTEGERS.get(self.type)
        return struct.unpack(f"<{self.count}{code}", self.value) if code else ()


class Directory(NamedTuple):
    """Entries by tag, the position of the link to the next directory, and its offset (0: none).

    damaged: how many entries were left out, because their type is unknown or their value is not in the data.
    """

    entries: dict[int, Entry]
    link: int
    next: int
    damaged: int = 0

    def integer(self, tag: int, default: int) -> int:
        entry = self.entries.get(tag)
        return entry.integers()[0] if entry is not None and entry.integers() else default


class Reader:
    """Reads the directories of a TIFF, BigTIFF or EXIF block."""

    def __init__(self, data: bytes | bytearray | memoryview):
        """Raises ValueError if `data` does not begin like a TIFF."""
        self.data = data
        start = bytes(data[:4])
        self.order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
        if start not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise ValueError(f"expected a TIFF header, found {start!r}")
        self.big = b"+" in start
        self._count, self._entry, self._offset = ("Q", "HHQ8s", "Q") if self.big else ("H", "HHL4s", "L")
        self.first = self._unpack(self._offset, 8 if self.big else 4)[0]
        self._left = _MOST_READ * len(data)

    def read(self, offset: int) -> Directory:
        """The directory at `offset`; entries whose values lie outside the data are left out.

        Raises ValueError or struct.error if there is none, or if its values overlap again and again.
        """
        count = self._unpack(self._count, offset)[0]
        if count > _MOST_ENTRIES:
            raise ValueError(f"a directory of {count} tags")
        position = offset + struct.calcsize(self.order + self._count)
        entries: dict[int, Entry] = {}
        damaged = 0
        for _ in range(count):
            tag, kind, items, inline = self._unpack(self._entry, position)
            size = _TYPE_BYTES.get(kind, 0) * items
            at = position + struct.calcsize(self.order + self._entry) - len(inline)
            if size > len(inline):
                at = struct.unpack(self.order + self._offset, inline)[0]
            if size and at + size <= len(self.data):
                self._left -= size
                if self._left < 0:
                    raise ValueError("tags that share their values")
                entries.setdefault(tag, Entry(kind, items, self._value(kind, at, size), at))
            else:
                damaged += 1
            position += struct.calcsize(self.order + self._entry)
        return Directory(entries, position, self._unpack(self._offset, position)[0], damaged)

    def child(self, directory: Directory, tag: int) -> Directory | None:
        """The directory that a tag points to, or None if there is none or it is damaged."""
        offset = directory.integer(tag, 0)
        try:
            return self.read(offset) if offset else None
        except (ValueError, struct.error):
            return None

    def chain(self) -> Iterator[Directory]:
        """The first directory and those linked from it, until the links end or repeat."""
        offset, seen = self.first, set()
        while offset and offset not in seen:
            try:
                directory = self.read(offset)
            except (ValueError, struct.error):
                if not seen:
                    raise
                # A link to nowhere, which some writers leave after the last directory.
                return
            seen.add(offset)
            yield directory
            offset = directory.next

    def keep_only(self, offset: int, tags: frozenset[int]) -> bytearray:
        """The data with only `tags` in the directory at `offset`, and without directories after it."""
        data, size = bytearray(self.data), struct.calcsize(self.order + self._entry)
        start = offset + struct.calcsize(self.order + self._count)
        positions = range(start, start + size * self._unpack(self._count, offset)[0], size)
        kept = [bytes(data[at : at + size]) for at in positions if self._unpack("H", at)[0] in tags]
        struct.pack_into(self.order + self._count, data, offset, len(kept))
        data[start : start + size * len(kept)] = b"".join(kept)
        struct.pack_into(self.order + self._offset, data, start + size * len(kept), 0)
        return data

    def _unpack(self, form: str, offset: int) -> tuple:
        return struct.unpack_from(self.order + form, self.data, offset)

    def _value(self, kind: int, at: int, size: int) -> bytes:
        value = bytes(self.data[at : at + size])
        number = _NUMBER_BYTES[kind]
        if self.order == ">" and number > 1:
            return np.frombuffer(value, f">u{number}").astype(f"<u{number}").tobytes()
        return value


def write(entries: dict[int, "Entry | dict"], offset: int) -> bytes:
    """A little-endian classic TIFF directory for `offset`, followed by its values.

    A dict among the entries becomes a directory of its own, and its tag points to it.
    """
    behind = offset + 2 + 12 * len(entries) + 4
    rows, values = struct.pack("<H", len(entries)), bytearray()
    for tag, entry in sorted(entries.items()):
        values += bytes(len(values) % 2)
        pointer = struct.pack("<L", behind + len(values))
        if isinstance(entry, dict):
            values += write(entry, behind + len(values))
            entry = Entry(4, 1, pointer)
        value = entry.value
        if len(value) > 4:
            values += value
            value = pointer
        rows += struct.pack("<HHL4s", tag, entry.type, entry.count, value)
    return rows + struct.pack("<L", 0) + values


def orientation_of(exif: bytes) -> int:
    """The orientation (1 to 8) that an EXIF block records, 1 if it records none."""
    try:
        reader = Reader(exif.removeprefix(_EXIF_HEADER))
        return checked_orientation(reader.read(reader.first).integer(ORIENTATION, 1))
    except (ValueError, struct.error):
        return 1


def checked_orientation(value: int) -> int:
    return value if 1 <= value <= 8 else 1


def updated_exif(exif: bytes, width: int, height: int) -> bytes:
    """An EXIF block (with or without its "Exif" header) for new pixels of `width` × `height` as stored.

    Recorded sizes are corrected and the link to the preview, which shows the old pixels, is cut; in place, so
    that maker notes keep their offsets. A block that cannot be parsed is returned unchanged.
    """
    header = _EXIF_HEADER if exif.startswith(_EXIF_HEADER) else b""
    data = bytearray(exif[len(header) :])
    try:
        reader = Reader(data)
        first = reader.read(reader.first)
        inner = reader.child(first, EXIF)
        for directory in (first, inner, inner and reader.child(inner, INTEROPERABILITY)):
            for entry in sized(directory.entries if directory else {}, width, height).values():
                code = reader.order + _INTEGERS[entry.type]
                struct.pack_into(code, data, entry.position, *entry.integers())
        if first.next:
            struct.pack_into(reader.order + reader._offset, data, first.link, 0)
    except (ValueError, struct.error):
        return exif
    return header + bytes(data)


def sized(entries: dict[int, Entry], width: int, height: int) -> dict[int, Entry]:
    """The entries of a directory that record the size of the image, with the given size."""
    changed = {}
    for tags in _SIZES:
        for tag, value in zip(tags, (width, height), strict=True):
            entry = entries.get(tag)
            if entry and entry.count == 1 and value < {3: 1 << 16, 4: 1 << 32}.get(entry.type, 0):
                changed[tag] = entry._replace(value=struct.pack("<" + _INTEGERS[entry.type], value))
    return changed
