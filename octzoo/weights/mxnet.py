"""MXNet's ``.params`` files: bytes <-> named arrays. Knows no model and trusts no file.

Everything is little-endian, without alignment or checksum:

    file    u64 0x112 | u64 0 | u64 count | count arrays | u64 number of names: count, or 0 for a list | the names
    name    u64 length | UTF-8
    array   u32 version | i32 storage, 0 is dense | i32 ndim | ndim x i64 | 2 x i32 device | i32 type | elements

V1 has no storage; before V1 the first word is ndim itself, and dimensions are u32. Only V3 has scalars and dimensions
of 0. Elsewhere ndim 0 says that there is no array, as -1 does in V3: refused, like sparse arrays.
"""

from __future__ import annotations

import math
import os
import re
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from typing import Literal, NamedTuple

import numpy as np

from octzoo.errors import UserError

_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_TYPES = [np.dtype(t) for t in ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8", "?")]  # the element type is the index
_MOST_DIMENSIONS = 32  # every numpy has so many
_MOST_BYTES = 2**63 - 1  # numpy's own limit; it counts a dimension of 0 as 1
_LEAST_ARRAY = 21  # bytes in a file: before V1, one dimension, one u8

_BLOCK = 512  # a tar is made of these
_NO_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_PAX_PATH = re.compile(rb"^\d+ path=(.*)$", re.MULTILINE)


class ParamsError(UserError):
    """Not MXNet's, damaged, or more than named dense arrays: says where in which file, and what was expected."""


def sniff(path: str | os.PathLike[str]) -> Literal["params", "tar"] | None:
    """What ``read_params`` would take a file for, by its first bytes and not by its name; None: for nothing it reads.

    A "tar" is any uncompressed one; whether it has a ``.params`` member shows on reading.
    """
    with open(path, "rb") as file:
        return _kind(file.read(_BLOCK))


def read_params(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a ``.params`` file, or of the one ``.params`` member, in whatever folder, of an uncompressed tar.

    The file is read once and nothing is extracted. It takes as much memory as the file has bytes; at most 15 times as
    much, if it has nothing but arrays of one byte.

    Returns:
        Name as it is in the file ("arg:" and "aux:" included) -> array, in the file's order; "0", "1", ... in a list
        without names. Each array is writable, aligned and has memory of its own.

    Raises:
        ParamsError: anything but dense arrays with names of their own, up to the very end of the file.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        kind = _kind(file.read(_BLOCK))
        file.seek(0)
        reader = _Reader(file, os.fsdecode(path), os.fstat(file.fileno()).st_size)
        if kind is None:
            start = bytes(reader.take(min(8, reader.left), "the start")).hex(" ") or "nothing"
            raise reader.error(f"starts with {start}", "0x112, as .params do, or a tar, not compressed")
        return _read_file(_params_member(reader) if kind == "tar" else reader)


def write_params(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as MXNet 1.9.1 does, byte for byte.

    The file is V2, or V3 if an array has no dimensions or no elements, which V2 cannot say. (MXNet reads V3 under its
    ``np_shape`` only, and refuses the two in one file.)

    Raises:
        ParamsError: an array of a type that MXNet has not, or of more than 32 dimensions; nothing is written.
    """
    names = [name.encode() for name in arrays]
    version = _V2 if all(a.ndim and a.size for a in arrays.values()) else _V3
    heads = [_head(version, a, f"{os.fsdecode(path)}: {_short(name)}") for name, a in arrays.items()]
    with open(path, "wb") as file:
        file.write(struct.pack("<3Q", _MAGIC, 0, len(heads)))
        for head, a in zip(heads, arrays.values()):
            file.write(head)
            file.write(a.astype(a.dtype.newbyteorder("<"), copy=False).tobytes())
        file.write(struct.pack("<Q", len(names)))
        file.writelines(struct.pack("<Q", len(name)) + name for name in names)


def _head(version: int, a: np.ndarray, what: str) -> bytes:
    dtype = a.dtype.newbyteorder("<")
    if dtype not in _TYPES:
        raise ParamsError(f"{what} is of type {a.dtype}; expected one of {', '.join(t.name for t in _TYPES)}")
    if a.ndim > _MOST_DIMENSIONS:
        raise ParamsError(f"{what} has {a.ndim} dimensions; expected at most {_MOST_DIMENSIONS}")
    cpu, its_number = 1, 0
    return struct.pack(f"<Iii{a.ndim}q3i", version, 0, a.ndim, *a.shape, cpu, its_number, _TYPES.index(dtype))


# ---- the reader ----------------------------------------------------------------------------------------------------


class _Reader:
    """Takes ``size`` bytes of an open file in order. The one place that asks whether there are enough of them.

    Attributes:
        at: how many are taken.
        field: where what was asked for last starts, which is what an error is about.
    """

    def __init__(self, file: BufferedReader, name: str, size: int):
        self.file, self.name, self.size = file, name, size
        self.at = self.field = 0

    @property
    def left(self) -> int:
        return self.size - self.at

    def take(self, n: int, what: str) -> bytearray:
        self.field = self.at
        if not 0 <= n <= self.left:
            raise self.error(f"{what} would have {n} bytes", f"no more than the {self.left} that are left")
        data = bytearray(n)
        if self.file.readinto(data) != n:
            raise self.error(f"{what} is gone", "a file that nobody shortens meanwhile")
        self.at += n
        return data

    def skip_to(self, at: int) -> None:
        self.at = self.file.seek(at)

    def numbers(self, form: str, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}"), what))

    def number(self, form: str, what: str) -> int:
        return self.numbers(form, what)[0]

    def error(self, problem: str, expected: str) -> ParamsError:
        return ParamsError(f"{self.name}: {problem} at byte {self.field}; expected {expected}")


def _short(name: str) -> str:
    """A name for an error: what may come from a hostile file is cut, and has no control characters."""
    return repr(name if len(name) <= 80 else name[:80] + "...")


# ---- .params -------------------------------------------------------------------------------------------------------


def _read_file(r: _Reader) -> dict[str, np.ndarray]:
    if (magic := r.number("Q", "the first number")) != _MAGIC:
        raise r.error(f"starts with {magic:#x}", f"{_MAGIC:#x}")
    if reserved := r.number("Q", "the reserved number"):
        raise r.error(f"the reserved number is {reserved:#x}", "0")
    count = r.number("Q", "the number of arrays")
    if count > (most := r.left // _LEAST_ARRAY):
        raise r.error(f"the number of arrays is {count}", f"at most {most} in the {r.left} bytes that are left")
    arrays = [_read_array(r, f"array {i}") for i in range(count)]
    named = r.number("Q", "the number of names")
    if named not in (0, count):
        raise r.error(f"the number of names is {named}", f"{count}, one for each array, or 0")
    result: dict[str, np.ndarray] = {}
    for i, array in enumerate(arrays):
        name = _read_name(r, i) if named else str(i)
        if name in result:
            raise r.error(f"a second array with the name {_short(name)}", "names that differ")
        result[name] = array
    r.take(0, "the end")
    if r.left:
        raise r.error("the file goes on after the names", "its end")
    return result


def _read_array(r: _Reader, what: str) -> np.ndarray:
    version = r.number("I", f"{what}'s version")
    if version in (_V2, _V3) and (storage := r.number("i", f"{what}'s storage type")) != 0:
        raise r.error(f"{what} has storage type {storage}", "0, a dense array (1 and 2 are sparse)")
    before_v1 = version not in (_V1, _V2, _V3)
    ndim = version if before_v1 else r.number("i", f"{what}'s ndim")
    least = 0 if version == _V3 else 1
    if not least <= ndim <= _MOST_DIMENSIONS:
        none = ", which says that there is no array," if ndim == least - 1 else ""
        version_or = f"a version ({_V1:#x}, {_V2:#x}, {_V3:#x}) or " if before_v1 else ""
        raise r.error(f"{what} has ndim {ndim}{none}", f"{version_or}{least} to {_MOST_DIMENSIONS}")
    shape = r.numbers(f"{ndim}{'I' if before_v1 else 'q'}", f"{what}'s shape")
    if min(shape, default=least) < least:
        raise r.error(f"{what} has shape {shape}", f"dimensions of {least} or more")
    r.take(8, f"{what}'s device")  # where it was before it was saved
    code = r.number("i", f"{what}'s element type")
    if not 0 <= code < len(_TYPES):
        raise r.error(f"{what} has element type {code}", f"0 to {len(_TYPES) - 1}")
    dtype, what = _TYPES[code], f"{what}, {_TYPES[code].name} of shape {shape},"
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > _MOST_BYTES:
        raise r.error(f"{what} has too large dimensions", f"{_MOST_BYTES} bytes at most")
    array = np.ndarray(shape, dtype, r.take(math.prod(shape) * dtype.itemsize, what))
    if dtype.kind == "b" and (largest := array.view(np.uint8).max(initial=0)) > 1:  # numpy would compute wrongly
        raise r.error(f"{what} has an element that is {largest}", "0 or 1")
    return array


def _read_name(r: _Reader, i: int) -> str:
    data = r.take(r.number("Q", f"the length of name {i}"), f"name {i}")
    try:
        return data.decode()
    except UnicodeDecodeError as bad:
        raise r.error(f"name {i} is not UTF-8 ({bad.reason} after {bad.start} bytes)", "UTF-8") from None


# ---- tar -----------------------------------------------------------------------------------------------------------


class _Member(NamedTuple):
    name: str
    type: bytes
    start: int
    size: int


def _kind(start: bytes) -> Literal["params", "tar"] | None:
    if start.startswith(struct.pack("<Q", _MAGIC)):
        return "params"
    return "tar" if _header(start) else None


def _header(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None


def _params_member(tar: _Reader) -> _Reader:
    """Reads the member where it lies: nothing is extracted, and its name is only ever compared and shown."""
    members = list(_members(tar))
    found = [m for m in members if m.name.endswith(".params")]
    if len(found) > 1:
        raise ParamsError(f"{tar.name}: {len(found)} members end in .params: {_some(found)}; expected one")
    if not found:
        raise ParamsError(f"{tar.name}: no member ends in .params, of {_some(members) or 'none at all'}; expected one")
    member = found[0]
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ParamsError(f"{tar.name}: {_short(member.name)} is a link, sparse or special; expected an ordinary file")
    tar.file.seek(member.start)
    return _Reader(tar.file, f"{tar.name}, member {_short(member.name)}", member.size)


def _some(members: Sequence[_Member], most: int = 5) -> str:
    names = ", ".join(_short(m.name) for m in members[:most])
    return names + (f" and {len(members) - most} more" if len(members) > most else "")


def _members(tar: _Reader) -> Iterator[_Member]:
    """From header to header. ``tarfile`` parses a header, but its own walk is not for hostile files: in some versions
    of Python a size below zero or a long run of digits keeps it busy for ever (CVE-2025-8194, CVE-2024-6232).
    """
    longer, sparse = "", False  # what the headers before a member's own say of it
    while tar.left:
        block = bytes(tar.take(_BLOCK, "a header of the tar"))
        if not any(block):  # the end mark
            return
        header = _header(block)
        if header is None:
            raise tar.error("no header of a tar", "one that agrees with its checksum")
        name, size = longer or header.name, 0 if header.type in _NO_DATA else header.size
        if not 0 <= size <= tar.left:
            raise tar.error(f"{_short(name)} would have {size} bytes", f"0 to the {tar.left} that are left")
        following = min(tar.at - (-size // _BLOCK * _BLOCK), tar.size)  # some writers do not fill the last block
        if header.type == tarfile.GNUTYPE_LONGNAME:
            longer = _text(tar.take(size, "a long name").rstrip(b"\0"))
        elif header.type == tarfile.XHDTYPE:
            records = tar.take(size, "a pax header")
            sparse = b"GNU.sparse." in records
            if path := _PAX_PATH.search(records):
                longer = _text(path[1])
        elif header.type not in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            yield _Member(name, tarfile.GNUTYPE_SPARSE if sparse else header.type, tar.at, size)
            longer, sparse = "", False
        tar.skip_to(following)


def _text(name: bytes | bytearray) -> str:
    return name.decode("utf-8", "surrogateescape")
