"""`vigil export` and `export_run`: formats, real items, lineage, signature and Triton repository."""

import shutil

import pytest
import typer
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

from vigil.cli import export
from vigil.workflows.export_run import override_export_spec, sample_real_items
from vigil_data.errors import UserError
from vigil_serving.bundle.load import load_bundle
from vigil_serving.specs import ExportSpec, Int8Spec
from vigil_training.runs.run import Run


@pytest.fixture(scope="module")
def call():
    app = typer.Typer()
    export.register(app)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "250"})


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (("--formats", "onnx,jpeg"), "formats: jpeg is not a format; known are onnx, onnx-single, torchscript"),
        (("--formats", "onnx-bf16"), "formats: onnx-bf16: ONNX Runtime has no bfloat16 products on the CPU"),
        (("--opset", "9"), "opset: 9 is not supported; use 18 to 23"),
    ],
)
def test_export_refuses_unsupported_formats_and_opsets(trained, call, tmp_path, option, line) -> None:
    refused = call("export", trained.path, "--to", tmp_path / "b", *option)
    assert isinstance(refused.exception, UserError)
    assert len(refused.exception.lines) == 1
    assert refused.exception.lines[0].startswith(line)
    assert not list(tmp_path.iterdir())


def test_override_export_spec_takes_precedence_over_the_recipe() -> None:
    recipe = ExportSpec(formats=("torchscript",), opset=19, examples=7)
    assert override_export_spec(recipe) == recipe
    assert recipe.formats == ("onnx", "torchscript"), "the encoders and the fusion are always written"
    changed = override_export_spec(recipe, formats=["fp16", "int8"], opset=21, examples=0)
    assert (changed.formats, changed.opset, changed.examples) == (("onnx", "fp16", "int8"), 21, 0)


@pytest.mark.parametrize("wanted", [(10, 20, 5), (3, 0, 0), (100, 100, 200), (0, 4, 4)])
def test_sample_real_items_takes_no_item_twice(trained, wanted) -> None:
    examples, measure, calibration = wanted
    spec = ExportSpec(
        formats=("int8",), examples=examples, int8=Int8Spec(examples=measure, calibration_items=max(calibration, 1))
    )
    found = sample_real_items(trained, spec)
    ids = [[item.id for item in part] for part in found]
    every = [name for part in ids for name in part]
    assert len(every) == len(set(every)) == min(sum(wanted[:2]) + max(calibration, 1), 40)
    if sum(wanted) <= 40:
        assert [len(part) for part in ids] == [examples, measure, max(calibration, 1)]
    assert [len(part) for part in sample_real_items(trained, ExportSpec(examples=5))] == [5, 0, 0]


def test_export_records_lineage_and_licences(trained, call, tmp_path) -> None:
    run = shutil.copytree(trained.path, tmp_path / "run")
    done = call("export", run, "--to", tmp_path / "b", "--formats", "onnx", "--examples", "6")
    assert done.exit_code == 0, done.output
    assert "parity of ONNX, graph by graph" in done.output
    metadata = load_bundle(tmp_path / "b", check_hashes=False).metadata
    assert metadata.lineage["run_id"] == Run(run).run_id
    assert metadata.lineage["dataset"]["version"] == Run(run).read_environment()["dataset"]["version"]
    assert "commit" in metadata.lineage["git"]
    assert metadata.licences["tokenizer"].name == "not stated"
    assert set(metadata.graphs) == {*metadata.modalities, "fusion", "decisions"}
    assert all(p.real_items == 6 for p in metadata.parity)


def test_export_signs_the_bundle_and_writes_a_triton_repository(trained, call, tmp_path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub.pem").write_bytes(public)
    refused = call("export", trained.path, "--to", tmp_path / "b", "--sign", tmp_path / "key.pub.pem")
    assert isinstance(refused.exception, UserError)
    assert not (tmp_path / "b").exists()
    options = ("--formats", "onnx", "--sign", tmp_path / "key.pem", "--triton", tmp_path / "models")
    done = call("export", trained.path, "--to", tmp_path / "b", *options)
    assert done.exit_code == 0, done.output
    verified = call("verify", tmp_path / "b", "--public-key", tmp_path / "key.pub.pem")
    assert verified.exit_code == 0, verified.output
    assert {path.name for path in (tmp_path / "models").iterdir()} >= {
        f"{load_bundle(tmp_path / 'b', check_hashes=False).metadata.name}_fusion",
        "README.md",
    }
