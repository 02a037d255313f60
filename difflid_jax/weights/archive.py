"""Uncompressed zip archives, read in place: the files of `torch.save` since PyTorch 1.6.

`zipfile` reads the directory; the bytes of an entry are a view of the memory-mapped archive. Every size and
offset in the archive is checked against its length.
"""

import mmap
import struct
import zipfile
import zlib
from typing import BinaryIO

# The directory takes about 120 bytes an entry, and a checkpoint has one entry a tensor.
_MAX_DIRECTORY_BYTES = 8 << 20
_CHECK_BYTES = 4 << 20


class Archive:
    """The entries of the zip archive mapped as `content`; `file` is the same archive, open for reading.

    Raises ValueError if the archive is damaged or names an entry twice.
    """

    def __init__(self, content: mmap.mmap, file: BinaryIO):
        self._content = content
        self._file = file
        try:
            with zipfile.ZipFile(_BoundedReads(content)) as archive:
                listed = archive.infolist()
        except (zipfile.BadZipFile, struct.error, NotImplementedError, OSError, ValueError) as error:
            raise ValueError(
                f"the zip archive is truncated or damaged ({error}); download the file again"
            ) from error
        self._entries = {entry.filename: entry for entry in listed}
        if len(self._entries) != len(listed):
            raise ValueError("the zip archive holds two files of one name")

    @property
    def names(self):
        """The names of all entries."""
        return self._entries.keys()

    def content_of(self, name: str) -> memoryview:
        """The bytes of one entry, in place, after their checksum has been verified.

        Raises ValueError if the entry is missing, compressed, damaged or reaches past the end.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise ValueError(f"the zip archive lacks {name[:100]}")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ValueError(f"{name[:100]} is compressed or encrypted, which torch.save never does")
        header, size, content = entry.header_offset, entry.file_size, self._content
        if not 0 <= header <= len(content) - 30 or content[header : header + 4] != b"PK\x03\x04":
            raise ValueError(f"the zip archive holds no {name[:100]} at the offset in its directory")
        start = header + 30 + sum(struct.unpack_from("<HH", content, header + 26))
        if size != entry.compress_size or start + size > len(content):
            raise ValueError(f"{name[:100]} claims {size:,} bytes, more than the file holds")
        if self._checksum(start, size) != entry.CRC:
            raise ValueError(f"the checksum of {name[:100]} is wrong; the file is damaged: download it again")
        return memoryview(content)[start : start + size]

    def _checksum(self, start: int, size: int) -> int:
        # Read in pieces rather than through the memory map, whose pages would count as this process's memory.
        checksum = 0
        self._file.seek(start)
        while size and (piece := self._file.read(min(size, _CHECK_BYTES))):
            checksum, size = zlib.crc32(piece, checksum), size - len(piece)
        return checksum


class _BoundedReads:
    """A file for `zipfile`, which would allocate any size that an archive claims for its directory."""

    def __init__(self, content: mmap.mmap):
        self._content = content
        self.seek = content.seek
        self.tell = content.tell

    def read(self, count: int = -1) -> bytes:
        left = max(0, len(self._content) - self.tell())
        count = left if count < 0 else min(count, left)
        if count > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory claims {count:,} bytes")
        return self._content.read(count)
