"""Writing, loading and checking of bundles: `written_bundle`, `load_bundle`, `check_files`."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vigil_data.errors import Failure, UserError
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import load_bundle
from vigil_serving.bundle.save import read_taxonomy


def test_load_bundle_reads_what_the_export_wrote(exported) -> None:
    bundle = load_bundle(exported.bundle)
    assert read_taxonomy(exported.bundle) == exported.taxonomy
    assert dict(bundle.thresholds) == exported.thresholds
    assert asdict(bundle.inputs.image) == exported.inputs.image.model_dump()
    assert asdict(bundle.inputs.audio) == exported.inputs.audio.model_dump()
    assert bundle.inputs.text.tokenizer == str(exported.bundle / "tokenizer" / "tokenizer.json")
    assert bundle.metadata.lineage == {"dataset": {"path": "/somewhere", "version": 3}}
    assert json.loads((exported.bundle / "inputs.json").read_text())["text"]["tokenizer"] == "tokenizer/tokenizer.json"


def test_load_bundle_reads_a_moved_bundle(exported, bundle_copy: Path) -> None:
    assert manifest.check_files(bundle_copy) == manifest.check_files(exported.bundle)
    assert load_bundle(bundle_copy).inputs.text.tokenizer.startswith(str(bundle_copy))


def test_check_files_reports_each_missing_added_and_changed_file(bundle_copy: Path) -> None:
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
def test_check_files_finds_any_changed_bit(contents: dict[str, bytes], data: st.DataObject, tmp_path: Path) -> None:
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


def test_written_bundle_keeps_the_old_bundle_on_failure(bundle_copy: Path) -> None:
    before = manifest.check_files(bundle_copy)
    with pytest.raises(Failure, match="cannot be written: Is a directory"), manifest.written_bundle(bundle_copy) as folder:
        folder.write_text("a folder is not a file")
    assert manifest.check_files(bundle_copy) == before
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]


def test_written_bundle_replaces_a_bundle_and_fills_an_empty_folder(bundle_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for to in (bundle_copy, tmp_path / "empty", tmp_path / "new" / "deep"):
        with manifest.written_bundle(to) as folder:
            (folder / "bundle.json").write_text("{}")
        assert sorted(path.name for path in to.iterdir()) == ["bundle.json", "manifest.json"]


def test_load_bundle_refuses_other_folders_and_formats(tmp_path: Path, bundle_copy: Path) -> None:
    (tmp_path / "file").write_text("")
    for call in (load_bundle, manifest.check_files):
        with pytest.raises(UserError, match="is not a bundle"):
            call(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a file"):
        manifest.check_target(tmp_path / "file")
    (bundle_copy / "bundle.json").write_text('{"format": 9}')
    with pytest.raises(UserError, match=r"a bundle of format 9, but this Vigil reads 6; export it again"):
        load_bundle(bundle_copy, check_hashes=False)
    (bundle_copy / "bundle.json").write_text("{")
    with pytest.raises(UserError, match=r"bundle\.json:1: not JSON"):
        load_bundle(bundle_copy, check_hashes=False)
    (bundle_copy / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="not a bundle's manifest"):
        manifest.check_files(bundle_copy)
