"""A bundle is written in one step, read back whole, and every alteration is found."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigil_data.errors import UserError
from vigil_serving.bundle import load as bundles
from vigil_serving.bundle import manifest
from vigil_serving.bundle.save import read_taxonomy


def test_reads_what_was_written(exported) -> None:
    bundle = bundles.read(exported.bundle)
    assert read_taxonomy(exported.bundle) == exported.taxonomy
    assert dict(bundle.thresholds) == exported.thresholds
    assert asdict(bundle.inputs.image) == exported.inputs.image.model_dump()
    assert asdict(bundle.inputs.audio) == exported.inputs.audio.model_dump()
    assert bundle.inputs.text.tokenizer == str(exported.bundle / "tokenizer" / "tokenizer.json")
    assert bundle.signature.lineage == {"dataset": {"path": "/somewhere", "version": 3}}
    assert json.loads((exported.bundle / "inputs.json").read_text())["text"]["tokenizer"] == "tokenizer/tokenizer.json"


def test_moved_bundle_is_the_same(exported, bundle_copy: Path) -> None:
    assert manifest.check_files(bundle_copy) == manifest.check_files(exported.bundle)
    assert bundles.read(bundle_copy).inputs.text.tokenizer.startswith(str(bundle_copy))


def test_missing_added_and_changed_files_each_get_a_line(bundle_copy: Path) -> None:
    (bundle_copy / "thresholds.json").write_text('{"scam": 0.01}')
    (bundle_copy / "README.md").unlink()
    (bundle_copy / "onnx" / "extra.onnx").write_bytes(b"x")
    (bundle_copy / "linked").symlink_to("/")
    with pytest.raises(UserError) as caught:
        manifest.check_files(bundle_copy)
    assert [line.removeprefix(f"{bundle_copy}: ") for line in caught.value.lines] == [
        "README.md is missing",
        "linked was added after the export",
        "onnx/extra.onnx was added after the export",
        "thresholds.json was changed after the export",
    ]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.dictionaries(st.sampled_from("abcdef"), st.binary(min_size=1, max_size=50), min_size=1), data=st.data())
def test_any_changed_bit_is_found(contents: dict[str, bytes], data: st.DataObject, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in {**contents, "bundle.json": b"{}"}.items():
        (folder / name).write_bytes(content)
    manifest.write_manifest(folder)
    manifest.check_files(folder)
    name = data.draw(st.sampled_from(sorted(contents)))
    changed = bytearray(contents[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(changed)
    with pytest.raises(UserError, match=f"{name} was changed"):
        manifest.check_files(folder)


def test_failed_writing_leaves_what_was_there(bundle_copy: Path) -> None:
    before = manifest.check_files(bundle_copy)
    with pytest.raises(IsADirectoryError), manifest.writing(bundle_copy) as folder:
        folder.write_text("a folder is no file")
    assert manifest.check_files(bundle_copy) == before
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_writing_replaces_a_bundle_and_fills_an_empty_folder(bundle_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for to in (bundle_copy, tmp_path / "empty", tmp_path / "new" / "deep"):
        with manifest.writing(to) as folder:
            (folder / "bundle.json").write_text("{}")
        assert sorted(path.name for path in to.iterdir()) == ["bundle.json", "manifest.json"]


def test_what_is_not_a_bundle(tmp_path: Path, bundle_copy: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (bundles.read, manifest.check_files):
        with pytest.raises(UserError, match="is not a bundle"):
            call(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file"):
        manifest.refuse_occupied(tmp_path / "file")
    (bundle_copy / "bundle.json").write_text('{"format": 9}')
    with pytest.raises(UserError, match=r"a bundle of format 9, and this Vigil reads 3; export it again"):
        bundles.read(bundle_copy)
    (bundle_copy / "bundle.json").write_text("{")
    with pytest.raises(UserError, match=r"bundle\.json:1: not JSON"):
        bundles.read(bundle_copy)
    (bundle_copy / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="not a bundle's manifest"):
        manifest.check_files(bundle_copy)
