"""GGUF headers: what the gguf package writes is read, and damaged files are refused by one error."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigil_data.decode.gguf_file import read_gguf
from vigil_data.errors import UserError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
VALUES = {
    "uint32": st.integers(0, 2**32 - 1),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "float32": st.floats(width=32, allow_nan=False),
    "bool": st.booleans(),
    "string": TEXT.filter(bool),
    "array": st.one_of(
        st.lists(TEXT, min_size=1, max_size=5),
        st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5),
        st.lists(st.booleans(), min_size=1, max_size=5),
    ),
}


def write(path: Path, values: dict[str, object], tensors: dict[str, np.ndarray], alignment: int | None = None) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in values.items():
        getattr(writer, f"add_{key.split('.')[0]}")(key, value)
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.fixed_dictionaries({}, optional={f"{kind}.x": values for kind, values in VALUES.items()}),
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4),
    alignment=st.sampled_from([None, 64]),
)
def test_read_gguf_reads_what_the_gguf_package_wrote(tmp_path, values, shapes, alignment):
    path = tmp_path / "a.gguf"
    tensors = {f"t{i}": np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    write(path, values, tensors, alignment)
    found = read_gguf(path)
    assert {key: value for key, value in found.metadata.items() if key in values} == values
    assert found.metadata["general.architecture"] == "llama"
    assert list(found.tensors) == list(tensors)
    content = path.read_bytes()
    for name, tensor in tensors.items():
        assert found.tensors[name].shape == tensor.shape
        assert found.tensors[name].kind == gguf.GGMLQuantizationType.F32
        start = found.tensors[name].offset
        np.testing.assert_array_equal(np.frombuffer(content[start : start + tensor.nbytes], np.float32), tensor.ravel())


def test_read_gguf_refuses_other_files(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"PK\3\4 a zip")
    with pytest.raises(UserError, match=r"a\.gguf is not a GGUF file"):
        read_gguf(path)
    write(path, {"string.x": "y"}, {"t": np.zeros((2, 3), np.float32)})
    content = path.read_bytes()
    path.write_bytes(content[:4] + (1).to_bytes(4, "little") + content[8:])
    with pytest.raises(UserError, match="its version is 1, and versions 2 and 3 are read"):
        read_gguf(path)


def test_read_gguf_refuses_every_cut_and_never_raises_anything_else(tmp_path):
    path = tmp_path / "a.gguf"
    write(path, {"array.x": ["a", "bc"], "uint32.x": 3}, {"t": np.zeros((2, 3), np.float32)})
    content = path.read_bytes()
    header = read_gguf(path).tensors["t"].offset
    random = np.random.default_rng(0)
    for cut in range(4, header - 32):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match="cut off or damaged"):
            read_gguf(path)
    for _ in range(300):  # damaged headers are read as something, or refused
        damaged = bytearray(content)
        damaged[random.integers(4, header)] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_gguf(path)
        except UserError:
            continue
