"""Detects truncated files of known formats at little cost.

Sources: the SAM specification (4.1.2, the end-of-file marker of BGZF), the CRAM specification (section 9, the
end-of-file container), RFC 1952 (gzip), the HDF5 file format specification 3.0 (II.A, the superblock).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable

from ..kernel.descriptors import closing
from ..kernel.long_paths import reach

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
CRAM_ENDS = {
    2: bytes.fromhex("0b000000ffffffff0fe0454f4600000000010000000000"),
    3: bytes.fromhex("0f000000ffffffff0fe0454f4600000000010005bdd94f0001000606010001000100ee63014b"),
}
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 18
_MOST_EXPANDED = 32  # times its size; a file that expands more, such as zeros, stays unchecked
_HDF5_SUPERBLOCK_BYTES = 48  # of the shortest
_HDF5_PLACES = (0, 512, 1024, 2048, 4096, 8192)  # a user block may stand before it


def gzip_budget_bytes(seconds: float) -> int:
    """Compressed bytes of a job's gzip files that are unpacked, which is the only way to find their end."""
    return (1 << 20) + int(seconds * (1 << 19))


def problem(path: str, name: str, gzip_bytes: int) -> str | None:
    """The damage of a file, as the end of a sentence; None if it is complete, unknown, empty or too large to check.

    Args:
        name: its ending says which format the file should have.
        gzip_bytes: gzip files (other than BGZF) up to this size are unpacked.

    Raises:
        OSError: if the file cannot be read.
    """
    check = _CHECKS.get(os.path.splitext(name)[1].lower())
    if check is None:
        return None
    with closing(reach(os.open, path, flags=os.O_RDONLY | os.O_CLOEXEC)) as fd:
        size = os.fstat(fd).st_size
        return check(fd, size, gzip_bytes) if size else None


def _packed(fd: int, size: int, gzip_bytes: int) -> str | None:
    head = os.pread(fd, 18, 0)
    if head[:2] != _GZIP:
        return None  # another format, such as an uncompressed BAM
    if _is_bgzf(head):
        if os.pread(fd, len(BGZF_END), max(0, size - len(BGZF_END))) == BGZF_END:
            return None
        return "has no BGZF end-of-file marker: it is truncated, or its writer did not finish it"
    return _gzip(fd, gzip_bytes) if size <= gzip_bytes else None


def _is_bgzf(head: bytes) -> bool:
    """Whether the extra field of the first member has BGZF's subfield."""
    return len(head) >= 16 and bool(head[3] & 4) and head[12:16] == b"BC\x02\x00"


def _gzip(fd: int, most_bytes: int) -> str | None:
    """Unpack the file, member by member; zlib compares checksum and length at the end of each."""
    unpacked, left = 0, most_bytes * _MOST_EXPANDED
    os.lseek(fd, 0, os.SEEK_SET)
    member = zlib.decompressobj(31)
    try:
        while data := os.read(fd, _CHUNK):
            while data:
                if member.eof:
                    if not data.startswith(_GZIP[: len(data)]):
                        return None  # padding, which gzip ignores too
                    member = zlib.decompressobj(31)
                unpacked += len(member.decompress(data, _CHUNK))
                data = member.unused_data if member.eof else member.unconsumed_tail
                if unpacked > left:
                    return None
    except zlib.error as error:
        return f"is damaged: {str(error).rpartition(': ')[2]}"
    return None if member.eof else "is truncated: its gzip stream does not end"


def _cram(fd: int, size: int, gzip_bytes: int) -> str | None:
    del gzip_bytes
    head = os.pread(fd, 6, 0)
    if head[:4] != b"CRAM" or (end := CRAM_ENDS.get(head[4])) is None:
        return None
    if head[4] == 2 and head[5] == 0:  # 2.0 has no end-of-file container
        return None
    tail = os.pread(fd, 64, max(0, size - 64))
    found = end in tail if head[4] == 2 else tail.endswith(end)
    return None if found else "has no CRAM end-of-file container: it is truncated, or its writer did not finish it"


def _hdf5(fd: int, size: int, gzip_bytes: int) -> str | None:
    del gzip_bytes
    for place in _HDF5_PLACES:
        head = os.pread(fd, 64, place)
        if head.startswith(HDF5_SIGNATURE):
            if len(head) < _HDF5_SUPERBLOCK_BYTES:
                return "is truncated within its superblock"
            end = _hdf5_end(head)
            if end is not None and size < end:
                return f"is truncated: {size} of {end} bytes"
            return None
    return "has no HDF5 signature"


def _hdf5_or_else(fd: int, size: int, gzip_bytes: int) -> str | None:
    """Check NetCDF, which is HDF5 since version 4 and a format of its own before."""
    return _hdf5(fd, size, gzip_bytes) if os.pread(fd, 4, 0) == HDF5_SIGNATURE[:4] else None


def _hdf5_end(head: bytes) -> int | None:
    """The size of a file according to its superblock, in bytes; None if that is unknown."""
    version, number = head[8], 2  # it is the third address: after the base, and free space or an extension
    if version in (0, 1):
        width, start = head[13], 24 + 4 * version
    elif version in (2, 3):
        width, start = head[9], 12
    else:
        return None
    if width not in (2, 4, 8) or start + (number + 1) * width > len(head):
        return None
    end = int.from_bytes(head[start + number * width : start + (number + 1) * width], "little")
    return None if end == (1 << (8 * width)) - 1 else end


_CHECKS: dict[str, Callable[[int, int, int], str | None]] = {
    **dict.fromkeys((".bam", ".bcf", ".gz", ".bgz", ".bgzf", ".tgz"), _packed),
    ".cram": _cram,
    **dict.fromkeys((".h5", ".hdf5", ".h5ad", ".h5mu", ".loom", ".cool", ".mcool", ".fast5"), _hdf5),
    ".nc": _hdf5_or_else,
}
