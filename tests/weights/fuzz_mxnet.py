"""Damaged ``.params`` files and tars, and what must hold of each: refused, or its bytes say exactly what was read.

``python tests/weights/fuzz_mxnet.py --inputs 1000000 --seed 0`` tries many; test_mxnet.py takes a few from here.
"""

import argparse
import resource
import struct
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import numpy as np

from octzoo.weights.mxnet import ParamsError, read_params

SAMPLES = Path(__file__).parents[1] / "golden" / "format"
DTYPES = ["float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool"]
WORDS = {"V1": 0xF993FAC8, "V2": 0xF993FAC9, "V3": 0xF993FACA}  # "V0", before V1, has none


# ---- a writer of every version, field by field ---------------------------------------------------------------------


def array_fields(version: str, a: np.ndarray) -> list[bytes]:
    """The device is the fourth and third from last: 8 bytes that say nothing."""
    word = [] if version == "V0" else [struct.pack("<I", WORDS[version])]
    storage = [struct.pack("<i", 0)] if version in ("V2", "V3") else []
    dims = [struct.pack("<I" if version == "V0" else "<q", n) for n in a.shape]
    device = [struct.pack("<i", 1), struct.pack("<i", 0)]
    code = struct.pack("<i", DTYPES.index(a.dtype.name))
    return [*word, *storage, struct.pack("<i", a.ndim), *dims, *device, code, a.tobytes()]


def file_fields(arrays: Mapping[str, np.ndarray], version: str, named: bool = True) -> list[bytes]:
    fields = [struct.pack("<Q", n) for n in (0x112, 0, len(arrays))]
    for a in arrays.values():
        fields += array_fields(version, a)
    fields.append(struct.pack("<Q", len(arrays) if named else 0))
    for name in arrays if named else ():
        fields += [struct.pack("<Q", len(name.encode())), name.encode()]
    return fields


def encode(arrays: Mapping[str, np.ndarray], version: str = "V2", named: bool = True) -> bytes:
    return b"".join(file_fields(arrays, version, named))


# ---- the oracle: write what was read anew, and compare -------------------------------------------------------------


def end_of(data: bytes, start: int, arrays: Mapping[str, np.ndarray]) -> int | None:
    """Where a file with exactly these arrays ends that starts at ``start``; None if no such file starts there."""
    if data[start : start + 24] != struct.pack("<3Q", 0x112, 0, len(arrays)):
        return None
    at = start + 24
    for a in arrays.values():
        if a.dtype == bool and not set(a.tobytes()) <= {0, 1}:
            return None
        for version in ("V0", "V1", "V2", "V3") if a.ndim and a.size else ("V3",):
            *head, _, _, code, elements = array_fields(version, a)
            before, after = b"".join(head), code + elements
            if data.startswith(before, at) and data.startswith(after, at + len(before) + 8):
                at += len(before) + 8 + len(after)
                break
        else:
            return None
    names = b"".join(struct.pack("<Q", len(name.encode())) + name.encode() for name in arrays)
    named, unnamed = struct.pack("<Q", len(arrays)) + names, bytes(8)
    if data.startswith(named, at):
        return at + len(named)
    numbered = list(arrays) == [str(i) for i in range(len(arrays))]
    return at + len(unnamed) if numbered and data.startswith(unnamed, at) else None


def says(data: bytes, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a file of these bytes holds these arrays, all of them, and nothing else."""
    if data[:2] == b"\x12\x01":
        return end_of(data, 0, arrays) == len(data)
    ends = {at: end_of(data, at, arrays) for at in range(512, len(data), 512)}  # of the members of a tar, maybe
    return any(end and is_header(data[at - 512 : at], size=end - at) for at, end in ends.items())


def is_header(block: bytes, size: int) -> bool:
    """Whether it is that of an ordinary member of this size."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    return header.size == size and header.type in (b"0", b"\0")


def attempt(path: Path, data: bytes) -> tuple[bool, int]:
    """Read these bytes: (whether they were accepted, the bytes of memory that it took at most, if tracemalloc runs).

    Fails if what is read is not what they say, if the memory is not of the order of the file, and at any error but a
    legible ParamsError.
    """
    path.write_bytes(data)
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    try:
        arrays = read_params(path)
    except ParamsError as error:
        arrays, refusal = None, str(error)
    memory = tracemalloc.get_traced_memory()[1] - before
    assert memory < 300_000 + 20 * len(data), f"{memory} bytes for {len(data)}"
    if arrays is None:
        assert refusal.startswith(str(path)), refusal
        assert refusal.isprintable(), refusal
        assert len(refusal) < 1500, refusal
        return False, memory
    assert says(data, arrays), f"read {arrays}"
    return True, memory


# ---- damage --------------------------------------------------------------------------------------------------------

NUMBERS = [
    *range(-2, 10), 21, 32, 33, 64, 255, 0x112, *WORDS.values(), 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
    2**60, 2**61, 2**62, 2**62 - 1, 2**63 - 1, 2**63, 2**64 - 1,
]  # fmt: skip


def number(value: int, width: int) -> bytes:
    """Little-endian, and as much of it as there is room for."""
    return (value % 256**width).to_bytes(width, "little")


def some_arrays(rng: Random) -> dict[str, np.ndarray]:
    """Now and then one without dimensions or elements, which is right in V3 only."""
    arrays = {}
    for i in range(rng.randrange(4)):
        least = rng.choice([0, 1, 1, 1])
        shape = [rng.randrange(least, 4) for _ in range(rng.randrange(least, 4))]
        dtype = np.dtype(rng.choice(DTYPES))
        values = rng.randbytes(int(np.prod(shape)) * dtype.itemsize)
        if dtype.name == "bool":
            values = bytes(v % 2 for v in values)
        arrays[f"{rng.choice(['arg:', 'aux:', ''])}{i}_é"] = np.frombuffer(values, dtype).reshape(shape)
    return arrays


def damaged_fields(rng: Random, fields: Sequence[bytes]) -> bytes:
    """Up to three fields with another number in them, left out, doubled, swapped, or as another one of its length."""
    fields = list(fields)
    for _ in range(rng.randrange(4)):
        i, j, how = rng.randrange(len(fields)), rng.randrange(len(fields)), rng.randrange(8)
        if how == 0:
            fields[i] = b""
        elif how == 1:
            fields.insert(j, fields[i])
        elif how == 2:
            fields[i], fields[j] = fields[j], fields[i]
        elif how == 3:
            fields[i] = rng.choice([f for f in fields if len(f) == len(fields[i])])
        elif len(fields[i]) in (4, 8):
            fields[i] = number(rng.choice(NUMBERS), len(fields[i]))
    return b"".join(fields)


def damaged_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Up to three bits flipped, numbers overwritten, pieces cut out, doubled, or put in from another file."""
    for _ in range(rng.randrange(4)):
        i = rng.randrange(len(data) + 1)
        j, how = min(i + rng.randrange(64), len(data)), rng.randrange(7)
        if how == 0:
            data = data[:i]
        elif how == 1:
            data = data[:i] + data[j:]
        elif how == 2:
            data = data[:j] + data[i:j] + data[j:]
        elif how == 3:
            other = rng.choice(others)
            data = data[:i] + other[rng.randrange(len(other) + 1) :][: rng.randrange(64)] + data[j:]
        elif how == 4:
            data = data[:i] + rng.randbytes(rng.randrange(16)) + data[i:]
        elif how == 5 and i < len(data):
            data = data[:i] + bytes([data[i] ^ 1 << rng.randrange(8)]) + data[i + 1 :]
        else:
            n = rng.choice([1, 4, 8])
            data = data[:i] + number(rng.choice(NUMBERS), n) + data[i + n :]
    return data


def tar_header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header with whatever is put into its size, and a checksum that agrees."""
    block = bytearray(tarfile.TarInfo(name[:90]).tobuf())
    block[124 : 124 + len(size)], block[156:157] = size, kind
    return with_checksum(block)


def with_checksum(block: bytes) -> bytes:
    return block[:148] + b"%06o\0 " % (sum(block[:148]) + 8 * ord(" ") + sum(block[156:])) + block[156:]


def octal(n: int) -> bytes:
    return b"%011o\0" % n


def blocks(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def some_tar(rng: Random, params: bytes) -> bytes:
    """The file among other members, links, long names and sizes that lie."""
    parts = []
    for _ in range(rng.randrange(1, 4)):
        kind = rng.choice(b"00000012567SLKxgX\0").to_bytes(1, "little")
        name = rng.choice(["a.params", "../../a.params", "/a.params", "a.params/", "a.json", "é", ""])
        data = rng.choice([params, params, b"", b"../" * 60 + b"b.params", b"17 path=b.params\n", b"9" * 99, b"\xff"])
        data += rng.choice([b"", b"", b"22 GNU.sparse.major=1\n"]) if kind == b"x" else b""
        lie = rng.choice(NUMBERS)
        base_256 = (b"\xff" if lie < 0 else b"\x80") + (lie % 256**11).to_bytes(11, "big")
        size = rng.choice([octal(len(data))] * 6 + [base_256, octal(lie % 8**11), rng.randbytes(12)])
        parts.append(tar_header(name, size, kind) + blocks(data))
    return b"".join(parts) + bytes(rng.choice([0, 512, 1024]))


def damaged_file(rng: Random, samples: Sequence[bytes]) -> bytes:
    """Sometimes whole, often with one damage, sometimes past recognition."""
    how = rng.randrange(20)
    if how == 0:
        return rng.randbytes(rng.randrange(600))
    if how < 8:
        params = damaged_bytes(rng, rng.choice(samples), samples)
    else:
        fields = file_fields(some_arrays(rng), rng.choice(["V0", "V1", "V2", "V3"]), rng.random() < 0.8)
        params = damaged_fields(rng, fields)
    if how >= 15:
        params = some_tar(rng, params)
        if how == 19:
            params = damaged_bytes(rng, params, samples)
    return params


def sample_files() -> list[bytes]:
    return [path.read_bytes() for path in sorted(SAMPLES.iterdir()) if path.suffix in (".params", ".tar")]


# ---- the long run --------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input, as of one that failed")
    args = parser.parse_args()
    samples, read, most_memory, slowest, began = sample_files(), 0, (0, 0), (0.0, 0), time.perf_counter()
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.first, args.first + args.inputs):
            data = damaged_file(Random(f"{args.seed}/{i}"), samples)
            start = time.process_time()
            try:
                accepted, memory = attempt(Path(folder) / "damaged", data)
            except BaseException:
                print(f"failed at --seed {args.seed} --first {i}: {data.hex()}")
                raise
            read += accepted
            slowest = max(slowest, (time.process_time() - start, len(data)))
            most_memory = max(most_memory, (memory, len(data)))
            tried = i + 1 - args.first
            if tried % 100_000 == 0 or tried == args.inputs:
                print(
                    f"{tried} tried: {tried - read} refused, {read} read, each as its bytes say; most memory "
                    f"{most_memory[0]} bytes (of a file of {most_memory[1]}), slowest {slowest[0] * 1000:.1f} ms "
                    f"(a file of {slowest[1]}); {time.perf_counter() - began:.0f} s, whole process at most "
                    f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
