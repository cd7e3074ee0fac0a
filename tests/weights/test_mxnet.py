"""MXNet's .params files: every genuine sample as MXNet reads it, and nothing from a file that does not say it."""

import gzip
import io
import json
import struct
import tarfile
import tracemalloc
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from octzoo.weights import mxnet
from octzoo.weights.mxnet import ParamsError, read_params, sniff, write_params
from tests.weights import fuzz_mxnet as fuzz
from tests.weights.fuzz_mxnet import SAMPLES, WORDS, blocks, encode, octal, tar_header, with_checksum

RECORDS = json.loads((SAMPLES / "samples.json").read_text())
WHOLE = [name for name, record in RECORDS.items() if record["accept"]]
VERSIONS = ["V0", "V1", "V2", "V3"]  # V0: before V1

ARRAYS = {
    "arg:conv_weight": np.arange(24, dtype=np.float16).reshape(2, 3, 2, 2),
    "aux:bn_moving_mean": np.array([1.5, -2.5], np.float32),
    "flag": np.array([True, False, True]),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("params") / "w.params"


def read(path, data):
    path.write_bytes(data)
    return read_params(path)


def refusal(path, data):
    """What is said of these bytes, without the path; and memory is of the order of the file."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ParamsError) as caught:
            read_params(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000 + 4 * len(data)
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def exact(arrays):
    """Everything of named arrays that must not differ, NaN and order included."""
    return [(name, a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()]


# ---- samples -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_samples_are_read_bit_for_bit_in_order(name):
    entries = RECORDS[name]["entries"]
    expected = [(key, np.dtype(dtype), tuple(shape), bytes.fromhex(data)) for key, dtype, shape, data in entries]
    assert exact(read_params(SAMPLES / name)) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "bad_magic.params",
            ": starts with 13 01 00 00 00 00 00 00 at byte 0; expected 0x112, as .params do, or a tar, not compressed",
        ),
        ("bad_name_count.params", ": the number of names is 1 at byte 96; expected 2, one for each array, or 0"),
        (
            "bad_truncated.params",
            ": name 3 would have 24 bytes at byte 552; expected no more than the 15 that are left",
        ),
        (
            "row_sparse.params",
            ": array 0 has storage type 1 at byte 28; expected 0, a dense array (1 and 2 are sparse)",
        ),
        ("csr.params", ": array 0 has storage type 2 at byte 28; expected 0, a dense array (1 and 2 are sparse)"),
    ],
)
def test_samples_that_are_refused(path, name, text):
    assert not RECORDS[name]["accept"]
    assert refusal(path, (SAMPLES / name).read_bytes()) == text


def test_no_sample_is_left_out():
    assert len(WHOLE) + 5 == len(RECORDS) == len(fuzz.sample_files())


def test_arrays_are_writable_aligned_and_their_own(path):
    data = encode(ARRAYS | {"odd": np.zeros(3, np.uint8), "after": np.ones(2, np.float64)})
    first, second = read(path, data), read_params(path)
    for name, a in first.items():
        assert a.flags.aligned
        assert a.flags.c_contiguous
        a.fill(1)
        assert exact({name: second[name]}) == exact({name: read_params(path)[name]})
    assert path.read_bytes() == data


def test_a_list_without_names_is_numbered(path):
    assert list(read(path, encode(ARRAYS, named=False))) == ["0", "1", "2"]


# ---- writing, and every version ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "arg_aux", "bare", "checkpoint-0000", "dtypes", "gluon", "gluon_float16", "names", "shapes", "empty_dict",
        "np_shape",  # V3
    ],
)  # fmt: skip
def test_what_is_written_is_mxnets_own_file_byte_for_byte(path, name):
    genuine = SAMPLES / f"{name}.params"
    write_params(path, read_params(genuine))
    assert path.read_bytes() == genuine.read_bytes()


SHAPES = npst.array_shapes(min_dims=0, max_dims=6, min_side=0, max_side=4)


def named(shapes):
    """Arrays of any of MXNet's types, with any names."""
    return st.dictionaries(st.text(max_size=12), npst.arrays(st.sampled_from(fuzz.DTYPES), shapes))


@given(arrays=named(SHAPES))
def test_reading_what_was_written_is_the_identity(path, arrays):
    write_params(path, arrays)
    assert exact(read_params(path)) == exact(arrays)


def test_strides_and_byte_order_are_not_kept(path):
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_params(path, {"t": a.T, "step": a[:, ::2], "big": a.astype(">f4"), "scalar": a[1, 1].astype(">f4")})
    b = read_params(path)
    assert exact(b) == exact({"t": a.T, "step": a[:, ::2], "big": a, "scalar": np.array(5, np.float32)})


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (
            np.zeros(2, np.complex64),
            "'w' is of type complex64; expected one of float32, float64, float16, uint8, int32, int8, int64, bool",
        ),
        (np.array(["a"]), "'w' is of type <U1; expected one of float32, "),
        (np.array([None]), "'w' is of type object; expected one of float32, "),
        (np.zeros((1,) * 33, np.float32), "'w' has 33 dimensions; expected at most 32"),
    ],
)
def test_what_the_format_cannot_say_is_not_written(tmp_path, array, text):
    with pytest.raises(ParamsError) as caught:
        write_params(tmp_path / "new", {"fine": np.zeros(1), "w": array})
    assert str(caught.value).startswith(f"{tmp_path / 'new'}: {text}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("version", VERSIONS)
@given(data=st.data())
def test_every_version_says_the_same(path, version, data):
    arrays = data.draw(named(SHAPES if version == "V3" else npst.array_shapes(max_dims=6, max_side=4)))
    assert exact(read(path, encode(arrays, version))) == exact(arrays)


def test_versions_may_be_mixed(path):
    fields = fuzz.file_fields({v: np.array([i], np.int8) for i, v in enumerate(VERSIONS)}, "V2")
    arrays = [f for i, v in enumerate(VERSIONS) for f in fuzz.array_fields(v, np.array([i], np.int8))]
    data = b"".join(fields[:3] + arrays + fields[3 + 4 * 8 :])
    assert {k: a.tolist() for k, a in read(path, data).items()} == {"V0": [0], "V1": [1], "V2": [2], "V3": [3]}


@given(device=st.binary(min_size=8, max_size=8), elements=st.binary(min_size=24, max_size=24))
def test_device_and_elements_may_be_anything(path, device, elements):
    fields = fuzz.file_fields({"w": np.zeros((2, 3), np.float32)}, "V2")
    fields[-7:-5], fields[-4] = [device], elements
    (w,) = read(path, b"".join(fields)).values()
    assert (w.shape, w.dtype, w.tobytes()) == ((2, 3), np.float32, elements)


# ---- what kind of file ---------------------------------------------------------------------------------------------


def a_tar(*members, format=tarfile.GNU_FORMAT):
    """Of (name or TarInfo, bytes)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (encode(ARRAYS), "params"),
        (encode({}), "params"),
        (a_tar(("a.params", encode(ARRAYS))), "tar"),
        (a_tar(("readme", b"")), "tar"),
        (tar_header("a.params", octal(0), b"\0")[:257] + bytes(255), None),  # but for its checksum
        (gzip.compress(a_tar(("a.params", encode(ARRAYS)))), None),
        (gzip.compress(encode(ARRAYS)), None),
        (b"PK\3\4" + bytes(600), None),
        (bytes(10240), None),
        (b"\x12\x01", None),
        (b"", None),
    ],
)
def test_the_kind_is_told_by_content_alone(tmp_path, data, kind):
    for name in ("a.params", "a.tar", "a"):
        (tmp_path / name).write_bytes(data)
        assert sniff(tmp_path / name) == sniff(str(tmp_path / name)) == kind
        if kind is None:
            start = data[:8].hex(" ") or "nothing"
            with pytest.raises(ParamsError, match=f"{name}: starts with {start} at byte 0; expected 0x112, as .params"):
                read_params(tmp_path / name)


def test_a_missing_file_is_the_systems_own_error(tmp_path):
    for call in (sniff, read_params):
        with pytest.raises(FileNotFoundError):
            call(tmp_path / "none")


# ---- files that are cut, or lie ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["dtypes", "names", "np_shape", "gpu_context", "v1", "legacy", "unnamed", "empty_list"]
)
def test_no_beginning_of_a_file_is_a_file(path, name):
    data = (SAMPLES / f"{name}.params").read_bytes()
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(ParamsError):
            read_params(path)


WHERE = [
    "magic", "reserved", "count", "version", "storage", "ndim", "rows", "columns", "device", "number", "type",
    "elements", "names", "length", "name",
]  # fmt: skip


def lying(dtype="float32", **values):
    """A V2 file of one array "w" [2, 3] with other bytes, or another number, in some of its fields."""
    fields = fuzz.file_fields({"w": np.ones((2, 3), dtype)}, "V2")
    for key, value in values.items():
        i = WHERE.index(key)
        fields[i] = value if isinstance(value, bytes) else fuzz.number(value, len(fields[i]))
    return b"".join(fields)


V3_EMPTY = dict(version=WORDS["V3"], rows=0, elements=b"")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (lying(reserved=1), "the reserved number is 0x1 at byte 8; expected 0"),
        (lying(count=0), f"the number of names is {WORDS['V2']} at byte 24; expected 0, one for each array, or 0"),
        (
            lying(count=2**60),
            "the number of arrays is 1152921504606846976 at byte 16; expected at most 3 in the 81 bytes that are left",
        ),
        (lying(count=2), "array 1 has shape (0,) at byte 92; expected dimensions of 1 or more"),
        (
            lying(version=0xF993FACB),
            "array 0 has ndim 4187224779 at byte 24; expected a version (0xf993fac8, 0xf993fac9, 0xf993faca) or 1 to ",
        ),
        (lying(storage=1), "array 0 has storage type 1 at byte 28; expected 0, a dense array (1 and 2 are sparse)"),
        (lying(storage=-1), "array 0 has storage type -1 at byte 28; expected 0, a dense array (1 and 2 are sparse)"),
        (lying(version=WORDS["V3"], storage=2), "array 0 has storage type 2 at byte 28; expected 0, a dense array"),
        (lying(ndim=0), "array 0 has ndim 0, which says that there is no array, at byte 32; expected 1 to 32"),
        (lying(ndim=-1), "array 0 has ndim -1 at byte 32; expected 1 to 32"),
        (lying(ndim=33), "array 0 has ndim 33 at byte 32; expected 1 to 32"),
        (lying(ndim=2**31 - 1), "array 0 has ndim 2147483647 at byte 32; expected 1 to 32"),
        (
            lying(version=WORDS["V3"], ndim=-1),
            "array 0 has ndim -1, which says that there is no array, at byte 32; expected 0 to 32",
        ),
        (lying(ndim=32), "array 0's shape would have 256 bytes at byte 36; expected no more than the 69 that are left"),
        (lying(rows=-2), "array 0 has shape (-2, 3) at byte 36; expected dimensions of 1 or more"),
        (lying(rows=-2, columns=-3), "array 0 has shape (-2, -3) at byte 36; expected dimensions of 1 or more"),
        (lying(rows=0), "array 0 has shape (0, 3) at byte 36; expected dimensions of 1 or more"),
        (
            lying(version=WORDS["V3"], rows=-1),
            "array 0 has shape (-1, 3) at byte 36; expected dimensions of 0 or more",
        ),
        (
            lying(rows=2**62, columns=4),  # 2**64 elements: none, if counted in 64 bits
            "array 0, float32 of shape (4611686018427387904, 4), has too large dimensions at byte 60; expected "
            "9223372036854775807 bytes at most",
        ),
        (
            lying(rows=2**40, columns=1),
            "array 0, float32 of shape (1099511627776, 1), would have 4398046511104 bytes at byte 64; expected no more "
            "than the 41 that are left",
        ),
        (
            lying(rows=2**33, columns=1, dtype="uint8"),
            "array 0, uint8 of shape (8589934592, 1), would have 8589934592 bytes at byte 64; expected no more than "
            "the 23 that are left",
        ),
        (
            lying(rows=4),
            "array 0, float32 of shape (4, 3), would have 48 bytes at byte 64; expected no more than the 41",
        ),
        (lying(rows=1), "the number of names is 4575657222473777152 at byte 76; expected 1, one for each array, or 0"),
        (
            lying(**V3_EMPTY, columns=2**62),
            "array 0, float32 of shape (0, 4611686018427387904), has too large dimensions at byte 60",
        ),
        (
            lying(**V3_EMPTY, columns=2**61),
            "array 0, float32 of shape (0, 2305843009213693952), has too large dimensions at byte 60",
        ),
        (lying(type=8), "array 0 has element type 8 at byte 60; expected 0 to 7"),
        (lying(type=-1), "array 0 has element type -1 at byte 60; expected 0 to 7"),
        (
            lying(dtype="bool", elements=bytes([0, 1, 1, 2, 0, 7])),
            "array 0, bool of shape (2, 3), has an element that is 7 at byte 64; expected 0 or 1",
        ),
        (lying(names=2), "the number of names is 2 at byte 88; expected 1, one for each array, or 0"),
        (lying(names=2**60), "the number of names is 1152921504606846976 at byte 88; expected 1, one for each array"),
        (lying(names=0), "the file goes on after the names at byte 96; expected its end"),
        (
            lying(length=2**63),
            "name 0 would have 9223372036854775808 bytes at byte 104; expected no more than the 1 that are left",
        ),
        (lying(length=2), "name 0 would have 2 bytes at byte 104; expected no more than the 1 that are left"),
        (lying(length=0), "the file goes on after the names at byte 104; expected its end"),
        (lying(name=b"\xff"), "name 0 is not UTF-8 (invalid start byte after 0 bytes) at byte 104; expected UTF-8"),
        (lying() + b"\0", "the file goes on after the names at byte 105; expected its end"),
        (lying() * 2, "the file goes on after the names at byte 105; expected its end"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_a_field_that_cannot_be_is_named_with_its_place(path, data, text):
    assert refusal(path, data).startswith(f": {text}")


@pytest.mark.parametrize(
    ("version", "first", "text"),
    [
        ("V0", struct.pack("<I", 0), "array 0 has ndim 0, which says that there is no array, at byte 24; expected a"),
        ("V0", struct.pack("<I", 33), "array 0 has ndim 33 at byte 24; expected a version (0xf993fac8, "),
        ("V0", struct.pack("<2I", 1, 0), "array 0 has shape (0,) at byte 28; expected dimensions of 1 or more"),
        ("V1", struct.pack("<Ii", WORDS["V1"], 0), "array 0 has ndim 0, which says that there is no array, at byte 28"),
        ("V1", struct.pack("<Iiq", WORDS["V1"], 1, 0), "array 0 has shape (0,) at byte 32; expected dimensions of 1"),
    ],
)
def test_no_array_and_unknown_dimensions_in_old_versions(path, version, first, text):
    data = encode({"w": np.ones(5, np.int8)}, version)
    assert refusal(path, data[:24] + first + data[24 + len(first) :]).startswith(f": {text}")


def test_two_arrays_with_one_name(path):
    fields = fuzz.file_fields({"a": np.zeros(1), "b": np.zeros(1), "c": np.zeros(1)}, "V2")
    assert fields[-3] == b"b"
    fields[-3] = b"a"
    data = b"".join(fields)
    place = len(data) - 10
    assert refusal(path, data) == f": a second array with the name 'a' at byte {place}; expected names that differ"


def test_names_in_errors_are_short_and_plain(path):
    name = "\x1b[2J" + "n" * 1000
    fields = fuzz.file_fields({name: np.zeros(1), "b": np.zeros(1)}, "V2")
    fields[-2:] = fields[-4:-2]
    text = refusal(path, b"".join(fields))
    assert text.isprintable()
    assert f"the name '\\x1b[2J{'n' * 76}...' at byte" in text


def test_a_file_that_becomes_shorter_meanwhile(path, monkeypatch):
    path.write_bytes(encode({"w": np.zeros((2, 3), np.float32)})[:70])
    monkeypatch.setattr(mxnet.os, "fstat", lambda _: SimpleNamespace(st_size=105))
    with pytest.raises(ParamsError, match="float32 of shape .2, 3., is gone at byte 64; expected a file that nobody"):
        read_params(path)


def memory_of_reading(path, data):
    """The most that reading took, in units of the file's size."""
    path.write_bytes(data)
    tracemalloc.start()
    read_params(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / len(data)


def test_memory_is_that_of_the_file(path):
    data = encode({f"w{i}": np.ones((256, 1024), np.float32) for i in range(8)})
    assert memory_of_reading(path, data) < 1.02
    assert memory_of_reading(path, a_tar(("a.params", data))) < 1.02


def test_memory_is_of_the_order_of_the_file_even_for_arrays_of_one_byte(path):
    assert memory_of_reading(path, encode({str(i): np.ones(1, np.uint8) for i in range(5000)}, "V0", named=False)) < 15


# ---- tar -----------------------------------------------------------------------------------------------------------

PARAMS = encode(ARRAYS)


def sparse(name):
    """A member with holes, as newer GNU tars say it."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
    return info


def oldest(name, data):
    """A tar from before there was a magic in its headers, and an end mark."""
    return with_checksum(tar_header(name, octal(len(data)), b"\0")[:257] + bytes(255)) + blocks(data)


@pytest.mark.parametrize(
    "data",
    [
        a_tar(("a.params", PARAMS)),
        a_tar(("symbol.json", b"{}"), ("deep/er/a.params", PARAMS), ("zero", b"")),
        a_tar(("n" * 300 + ".params", PARAMS), ("n" * 300 + ".json", b"{}")),
        a_tar(("n" * 300 + ".params", PARAMS), ("n" * 300 + ".json", b"{}"), format=tarfile.PAX_FORMAT),
        a_tar(("d" * 90 + "/" + "n" * 90 + ".params", PARAMS), format=tarfile.USTAR_FORMAT),
        a_tar(("é/名.params", PARAMS), format=tarfile.PAX_FORMAT),
        a_tar(("\udce9.params", PARAMS)),  # Latin-1
        a_tar(("\udce9" * 200 + ".params", PARAMS)),
        a_tar(("\udce9" * 200 + ".params", PARAMS), format=tarfile.PAX_FORMAT),
        oldest("a.params", PARAMS),
        tar_header("a.params", octal(len(PARAMS))) + PARAMS,  # the last block not filled
        tar_header("a.params", b"\x80" + len(PARAMS).to_bytes(11, "big")) + blocks(PARAMS),
        tar_header("link", octal(10**6), b"2") + a_tar(("a.params", PARAMS)),  # a link has no data, whatever its size
        a_tar(("a.params", PARAMS)) + b"what follows the end mark is not the tar's",
        a_tar(("n" * 300, b"whose long name is not the next one's"), ("a.params", PARAMS)),
        a_tar((sparse("b"), b"nor its holes"), ("a.params", PARAMS), format=tarfile.PAX_FORMAT),
    ],
    ids=range(16),
)
def test_the_one_params_member_of_a_tar(path, data):
    assert exact(read(path, data)) == exact(ARRAYS)


@pytest.mark.parametrize("name", ["../../up.params", "/abs.params", "a/../../b.params", "c:\\d.params", "~/e.params"])
def test_a_members_name_is_never_a_path(tmp_path, monkeypatch, name):
    (tmp_path / "in" / "side").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "in" / "side")
    (tmp_path / "w.tar").write_bytes(a_tar((name, PARAMS)))
    assert exact(read_params(tmp_path / "w.tar")) == exact(ARRAYS)
    assert {p.name for p in tmp_path.rglob("*")} == {"in", "side", "w.tar"}


def link(name, kind, target="/etc/passwd"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


NOT_ORDINARY = "'a.params' is a link, sparse or special; expected an ordinary file"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (a_tar(("a.json", b"{}"), ("params", b"")), "no member ends in .params, of 'a.json', 'params'; expected one"),
        (a_tar(("\udce9\n", b"")), "no member ends in .params, of '\\udce9\\n'; expected one"),
        (
            a_tar(*((f"{i}.txt", b"") for i in range(9))),
            "no member ends in .params, of '0.txt', '1.txt', '2.txt', '3.txt', '4.txt' and 4 more; expected one",
        ),
        (tar_header("", octal(0), b"g"), "no member ends in .params, of none at all; expected one"),
        (
            a_tar(("a.params", PARAMS), ("b/c.params", PARAMS)),
            "2 members end in .params: 'a.params', 'b/c.params'; expected one",
        ),
        (
            a_tar(("a.params", PARAMS), ("a.params", b"")),
            "2 members end in .params: 'a.params', 'a.params'; expected one",
        ),
        (a_tar((link("a.params", tarfile.SYMTYPE), b"")), NOT_ORDINARY),
        (a_tar(("b", PARAMS), (link("a.params", tarfile.LNKTYPE, "b"), b"")), NOT_ORDINARY),
        (a_tar((link("a.params", tarfile.FIFOTYPE), b"")), NOT_ORDINARY),
        (a_tar((link("a.params", tarfile.DIRTYPE), b"")), NOT_ORDINARY),
        (tar_header("a.params", octal(len(PARAMS)), tarfile.GNUTYPE_SPARSE) + blocks(PARAMS), NOT_ORDINARY),
        (a_tar((sparse("a.params"), PARAMS), format=tarfile.PAX_FORMAT), NOT_ORDINARY),
        (
            tar_header("a.params", octal(8**10)) + blocks(PARAMS),
            f"'a.params' would have 1073741824 bytes at byte 0; expected 0 to the {len(blocks(PARAMS))} that are left",
        ),
        (
            tar_header("a.params", b"\x80" + b"\xff" * 11) + blocks(PARAMS),
            f"'a.params' would have {256**11 - 1} bytes at byte 0; expected 0 to the {len(blocks(PARAMS))} that are",
        ),
        (  # tarfile of Python 3.11.7 walks round and round here
            a_tar(("0", b""))[:512] + tar_header("a.params", b"\xff" * 10 + b"\xfe\0") + bytes(1024),
            "'a.params' would have -512 bytes at byte 512; expected 0 to the 1024 that are left",
        ),
        (
            tar_header("", octal(8**11 - 1), tarfile.XHDTYPE) + bytes(512),
            "'' would have 8589934591 bytes at byte 0; expected 0 to the 512 that are left",
        ),
        (  # and here, for hours
            tar_header("", octal(400 * 512), tarfile.XHDTYPE) + b"1" * (400 * 512) + tar_header("a", octal(0)),
            "no member ends in .params, of 'a'; expected one",
        ),
        (tar_header("a", octal(0)) + b"\1" * 512, "no header of a tar at byte 512; expected one that agrees with its"),
        (
            tar_header("a", octal(0)) + b"\1" * 511,
            "a header of the tar would have 512 bytes at byte 512; expected no more than the 511 that are left",
        ),
        (tar_header("a", octal(0), b"L") * 3000, "no member ends in .params, of none at all; expected one"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_tars_that_are_refused(path, data, text):
    assert refusal(path, data).startswith(f": {text}")


def test_a_member_that_is_no_params_file_says_so_with_its_name(path):
    cut = a_tar(("x/a.params", PARAMS[:-1]))
    assert refusal(path, cut).startswith(", member 'x/a.params': name 2 would have 4 bytes at byte ")
    zeros = a_tar(("x/a.params", bytes(100)))
    assert refusal(path, zeros) == ", member 'x/a.params': starts with 0x0 at byte 0; expected 0x112"
    longer, place = a_tar(("x/a.params", PARAMS + b"!")), f"at byte {len(PARAMS)}"
    assert refusal(path, longer) == f", member 'x/a.params': the file goes on after the names {place}; expected its end"


def test_a_tar_that_is_cut_is_refused_or_has_lost_nothing(path):
    data, end = a_tar(("a.params", PARAMS)), 512 + len(PARAMS)
    for n in range(1, 512 + len(blocks(PARAMS)) + 1):
        path.write_bytes(data[:n])
        if n < end:
            with pytest.raises(ParamsError):
                read_params(path)
        else:
            assert exact(read_params(path)) == exact(ARRAYS)


# ---- any damage ----------------------------------------------------------------------------------------------------

FILES = fuzz.sample_files()


@settings(max_examples=1000)
@given(rng=st.randoms(use_true_random=False))
def test_a_damaged_file_is_refused_or_read_just_as_its_bytes_say(path, rng):
    data = fuzz.damaged_file(rng, FILES)
    tracemalloc.start()
    try:
        fuzz.attempt(path, data)
    finally:
        tracemalloc.stop()


def test_the_damage_leaves_some_files_readable_and_some_not(path):
    accepted = sum(fuzz.attempt(path, fuzz.damaged_file(Random(i), FILES))[0] for i in range(300))
    assert 30 < accepted < 270
