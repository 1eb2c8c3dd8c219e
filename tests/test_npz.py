"""Arrays of .npz files: headers without data, the same arrays as NumPy reads, and one error for any damage."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d3d.npz import NpzError, NpzFile

ARRAYS = {
    "a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(4, dtype=">i4"),
    "text": np.array(["плавание", "x"]),
    "scalar": np.array(5),
    "empty": np.zeros((0, 3), np.uint8),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_that_were_saved(save, tmp_path):
    save(tmp_path / "a.npz", **ARRAYS)
    with NpzFile(tmp_path / "a.npz") as file:
        assert {name: (h.dtype, h.shape) for name in file.names for h in [file.header(name)]} == {
            name: (array.dtype, array.shape) for name, array in ARRAYS.items()
        }
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(file.read(name), array)


def test_headers_are_known_before_any_array_is_unpacked(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros((2**12, 2**12), np.float32), x=np.arange(3))
    tracemalloc.start()
    with NpzFile(tmp_path / "a.npz") as file:
        assert file.header("zeros").shape == (2**12, 2**12)
        assert file.read("x").tolist() == [0, 1, 2]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22  # of the 2**26 bytes of zeros


def test_headers_that_python_2_wrote_are_read_without_a_warning(tmp_path):
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (3L,), }\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        data = np.arange(3, dtype="<i4").tobytes()
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
    with NpzFile(tmp_path / "a.npz") as file:
        assert file.read("x").tolist() == [0, 1, 2]


@given(
    compressed=st.booleans(),
    positions=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20),
    seed=st.integers(0, 2**32 - 1),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_damage_is_one_error_or_changes_nothing(tmp_path, compressed, positions, seed):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **ARRAYS)
    content, noise = bytearray(buffer.getvalue()), np.random.default_rng(seed)
    for position in positions:
        content[int(position * len(content))] = noise.integers(256)
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    arrays, message = read_or_refuse(path)
    assert message.isprintable()
    assert arrays or message.startswith(str(path))
    for name in arrays.keys() & ARRAYS.keys():  # the name of a member has no checksum
        np.testing.assert_array_equal(arrays[name], ARRAYS[name])


def read_or_refuse(path):
    try:
        with NpzFile(path) as file:
            return {name: file.read(name) for name in file.names}, ""
    except NpzError as error:
        return {}, str(error)


def test_an_array_larger_than_the_memory_is_one_error(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with NpzFile(tmp_path / "a.npz") as file:
        monkeypatch.setattr(np.lib.format, "read_array", fail)
        with pytest.raises(NpzError, match=r"a\.npz: 'x' needs 152 bytes of memory, more than there are"):
            file.read("x")
