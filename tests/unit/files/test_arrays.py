"""Arrays are read as NumPy reads them, and no size that a file states is believed."""

import io
import struct
import zipfile

import numpy as np
import pytest

from kdgan_compress.files import read_array_header, read_arrays

ARRAYS = {
    "a": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "c": np.array(["x", "yß"]),
    "d": np.array(True),
    "e": np.zeros((0, 3), np.uint8),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_numpy_reads(tmp_path, save):
    save(tmp_path / "a.npz", **ARRAYS)
    arrays = read_arrays(tmp_path / "a.npz", 1000)
    with np.load(tmp_path / "a.npz") as expected:
        assert arrays.keys() == set(expected.files)
        for name in expected.files:
            np.testing.assert_array_equal(arrays[name], expected[name])
            assert arrays[name].dtype == expected[name].dtype


def test_only_the_named_arrays_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", **ARRAYS)
    assert read_arrays(tmp_path / "a.npz", 48, ["a", "x"]).keys() == {"a"}


def write(path, member, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", member)


def array(descr="<f4", shape="(2,)", values=b"\0" * 8):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + values


@pytest.mark.parametrize(
    "member",
    [
        array(shape="(1000000000000,)"),
        array(shape="(2,3)"),
        array(shape=f"({'9' * 5000},)"),
        array(shape="(-2,)"),
        array(shape="(1,)" * 1000),
        array(descr="|O"),
        array(descr="<M8[s]"),
        array(descr="<U1", values=b"\xff" * 8),
        array(descr="<U1", values=struct.pack("<II", 0xD800, 65)),
        array(descr="|b1", values=b"\x02\x00"),
        array(values=b"\0" * 4),
        array(values=b"\0" * 12),
        array()[:20],
        b"",
        b"something else",
        b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1),
    ],
)
def test_a_damaged_array_is_a_value_error(tmp_path, member):
    write(tmp_path / "a.npz", member)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        read_arrays(tmp_path / "a.npz", 10_000)


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path):
    write(tmp_path / "a.npz", array("|u1", "(50000000,)", b"\0" * 50_000_000), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "a.npz").stat().st_size < 100_000
    with pytest.raises(ValueError, match="more than the 1,000,000 allowed"):
        read_arrays(tmp_path / "a.npz", 1_000_000)


def test_the_bound_is_on_all_arrays_together(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(100, np.uint8), b=np.zeros(100, np.uint8))
    assert len(read_arrays(tmp_path / "a.npz", 200)) == 2
    with pytest.raises(ValueError, match="allowed"):
        read_arrays(tmp_path / "a.npz", 199)
    with pytest.raises(ValueError, match="more than 1 arrays"):
        read_arrays(tmp_path / "a.npz", 200, max_arrays=1)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_header_of_every_format(version):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, ARRAYS["a"], version)
    stream.seek(0)
    header = read_array_header(stream)
    assert header[:3] == (np.dtype("f4"), (3, 4), False)
    assert header.offset == stream.tell()
    assert header.num_bytes == 48
