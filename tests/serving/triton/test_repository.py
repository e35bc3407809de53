"""Triton repositories match Triton's schema and the graphs, and their Python model decides as the runtime does."""

import importlib.util
import itertools
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import typer
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from logged_traffic import logged
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup
from typer.testing import CliRunner

from vigil.cli import export as command
from vigil_data.errors import UserError
from vigil_data.filesystem import sha256_file, write_json
from vigil_data.items import MODALITIES, Item
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import load_bundle
from vigil_serving.parity.cases import make_item
from vigil_serving.protocol.item_json import item_to_json
from vigil_serving.runtime.decisions import Decision
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.traffic.options import TrafficLogOptions
from vigil_serving.triton import config_pbtxt
from vigil_serving.triton.options import ModelRepositoryOptions
from vigil_serving.triton.repository import write_repository

PATTERNS = [pattern for n in range(4) for pattern in itertools.combinations(MODALITIES, n)]
LABELS = ("scam", "promotion", "tobacco")


@pytest.fixture(scope="module")
def fake() -> Iterator[ModuleType]:
    """Stand-in that model.py imports as ``triton_python_backend_utils``."""
    spec = importlib.util.spec_from_file_location("triton_python_backend_utils", Path(__file__).with_name("fake_triton.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["triton_python_backend_utils"] = module
    spec.loader.exec_module(module)
    yield module
    for name in ("triton_python_backend_utils", "vigil_serving.triton.python_backend", "vigil_serving.triton.remote_sessions"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def bundle(exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with a policy that limits some items, and removes those of one market."""
    copy = shutil.copytree(exported.bundle, tmp_path_factory.mktemp("triton") / "bundle")
    cells = {(None, None): {"scam": {"limit": 0.625}, "tobacco": {"limit": 0.5}}, ("fr", None): {"scam": {"remove": 0.0}}}
    CompiledPolicy("house", 3, ("allow", "limit", "remove"), LABELS, None, cells).write(copy / manifest.POLICY)
    manifest.write_manifest(copy)
    return copy


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("repository") / "models"
    assert write_repository(bundle, to, options=ModelRepositoryOptions(max_batch=4)) == [
        "tiny",
        "tiny_text",
        "tiny_image",
        "tiny_audio",
        "tiny_fusion",
    ]
    return to


@pytest.fixture
def server(fake: ModuleType, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    made = fake.Server(repository)
    monkeypatch.setattr(fake, "server", made)
    return made


@pytest.fixture
def model(fake: ModuleType, server: Any, repository: Path) -> Iterator[Any]:
    made = load(repository)
    yield made
    made.finalize()


def load(repository: Path) -> Any:
    """Run model.py as Triton does."""
    spec = importlib.util.spec_from_file_location("model", repository / "tiny" / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.TritonPythonModel()
    # Triton's JSON of a configuration has every field, with the names of the schema.
    config = json_format.MessageToJson(config_pbtxt.read_config(repository / "tiny"), preserving_proto_field_name=True)
    made.initialize(
        {"model_config": config, "model_repository": str(repository / "tiny"), "model_version": "1", "model_name": "tiny"}
    )
    return made


def as_json(item: Item) -> bytes:
    return json.dumps(item_to_json(item)).encode()


def ask(fake: ModuleType, model: Any, *requests: Sequence[bytes]) -> list[Any]:
    made = [fake.InferenceRequest(inputs=[fake.Tensor("item", np.array(texts, np.object_))]) for texts in requests]
    answers = model.execute(made)
    assert len(answers) == len(requests)
    return answers


def tensors(answer: Any) -> dict[str, Any]:
    assert not answer.has_error(), answer.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in answer.output_tensors()}


def check(answer: Any, expected: Sequence[Decision]) -> None:
    """Assert that the answer equals the runtime's decisions."""
    found = tensors(answer)
    assert found["probabilities"].dtype == np.float32
    assert found["probabilities"].shape == (len(expected), 3)
    for row, decision in enumerate(expected):
        wanted = [decision.probabilities.get(label, np.nan) for label in LABELS]
        np.testing.assert_allclose(found["probabilities"][row], wanted, atol=1e-5)
        assert found["action"][row].decode() == (decision.action or "")
        config, known = json.loads(found["decision"][row]), json.loads(json.dumps(decision.to_dict()))
        for name in ("probabilities", "evidence", "reasons"):
            config.pop(name), known.pop(name)
        assert config == known


def made_items(exported, patterns: Sequence[Sequence[str]], count: int) -> list[Item]:
    made = [make_item(patterns[n % len(patterns)], n, exported.inputs, placed=True) for n in range(count)]
    return [replace(item, columns={"market": "fr"} if n % 3 == 0 else {}) for n, item in enumerate(made)]


def test_write_repository_matches_schema_and_graphs(repository: Path) -> None:
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["tiny", "tiny_audio", "tiny_fusion", "tiny_image", "tiny_text"]
    for folder in folders[1:]:
        config = config_pbtxt.read_config(folder)
        assert (config.name, config.backend) == (folder.name, "onnxruntime")
        assert config_pbtxt.differences(folder) == []
        assert [group.kind for group in config.instance_group] == [ModelInstanceGroup.KIND_AUTO]
        batches = config.name != "tiny_fusion"
        assert config.HasField("dynamic_batching") is batches
        assert config.max_batch_size == (4 if batches else 0)
    text = config_pbtxt.read_config(repository / "tiny_text")
    assert [(tensor.name, list(tensor.dims)) for tensor in text.input] == [("input_ids", [-1]), ("attention_mask", [-1])]
    assert text.dynamic_batching.preferred_batch_size == [4]
    python_model = config_pbtxt.read_config(repository / "tiny")
    assert (python_model.backend, python_model.max_batch_size, [tensor.name for tensor in python_model.input]) == (
        "python",
        0,
        ["item"],
    )
    assert [(tensor.name, list(tensor.dims)) for tensor in python_model.output] == [
        ("probabilities", [-1, 3]),
        ("action", [-1]),
        ("decision", [-1]),
    ]


def test_encoder_config_warm_ups_read_files_of_their_size(repository: Path) -> None:
    read = 0
    for folder in repository.glob("tiny_*"):
        config = config_pbtxt.read_config(folder)
        assert [(w.name, w.batch_size) for w in config.model_warmup] == (
            [] if folder.name == "tiny_fusion" else [("one", 1), ("full", 4)]
        )
        for warm_up in config.model_warmup:
            assert set(warm_up.inputs) == {tensor.name for tensor in config.input}
            for sample in warm_up.inputs.values():
                if sample.input_data_file:
                    ones = np.frombuffer((folder / "warmup" / sample.input_data_file).read_bytes(), np.int64)
                    assert ones.tolist() == [1] * sample.dims[0]
                    read += 1
    assert read == 2


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ('name: "pixels"', 'name: "picture"', "input picture is ('TYPE_UINT8', (-1, 3, 32, 32)) in config.pbtxt, but None"),
        ("TYPE_UINT8", "TYPE_FP32", "input pixels is ('TYPE_FP32', (-1, 3, 32, 32)) in config.pbtxt, but ('TYPE_UINT8'"),
        (
            "dims: 16",
            "dims: 17",
            "output tokens is ('TYPE_FP32', (-1, 1, 17)) in config.pbtxt, but ('TYPE_FP32', (-1, 1, 16))",
        ),
        ("max_batch_size: 4", "max_batch_size: 0", "input pixels is ('TYPE_UINT8', (3, 32, 32)) in config.pbtxt"),
        ('name: "tiny_image"', 'name: "image"', "config.pbtxt names the model image"),
    ],
)
def test_differences_reports_each_mismatch(repository: Path, tmp_path: Path, before: str, after: str, line: str) -> None:
    folder = shutil.copytree(repository / "tiny_image", tmp_path / "tiny_image")
    text = (folder / "config.pbtxt").read_text()
    assert before in text
    (folder / "config.pbtxt").write_text(text.replace(before, after))
    assert line in "\n".join(config_pbtxt.differences(folder))


def test_read_config_refuses_fields_outside_the_schema(repository: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(repository / "tiny", tmp_path / "tiny")
    (folder / "config.pbtxt").write_text((folder / "config.pbtxt").read_text() + "max_batch: 3\n")
    with pytest.raises(UserError, match="not a Triton model configuration"):
        config_pbtxt.read_config(folder)


def test_python_backend_decides_as_the_runtime(fake, server, model, bundle: Path, exported) -> None:
    items = made_items(exported, PATTERNS, 48)
    expected = Scorer(bundle, threads=1, cache_bytes=0).score(items)
    assert {decision.action for decision in expected} == {"allow", "limit", "remove"}
    assert max(decision.cut for decision in expected) > 0, "some item exceeds the bundle's limits"
    for size in (1, 3, 8, 48):
        for start in range(0, len(items), size):
            [found] = ask(fake, model, [as_json(item) for item in items[start : start + size]])
            check(found, expected[start : start + size])
    several = ask(fake, model, *([as_json(item) for item in items[start : start + 6]] for start in range(0, 48, 6)))
    for place, found in enumerate(several):
        check(found, expected[6 * place : 6 * place + 6])
    assert server.joined > 10, "requests were joined as Triton joins them"


def test_python_backend_gives_the_evidence_and_reasons_of_the_runtime(fake, server, model, bundle: Path, exported) -> None:
    items = made_items(exported, [MODALITIES], 12)
    [found] = ask(fake, model, [as_json(item) for item in items])
    for text, decision in zip(tensors(found)["decision"], Scorer(bundle, threads=1).score(items), strict=True):
        config = json.loads(text)
        assert [(r["label"], r["action"]) for r in config["reasons"]] == [(r.label, r.action) for r in decision.reasons]
        weights = {(e["label"], e["modality"], json.dumps(e["span"])): e["weight"] for e in config["evidence"]}
        wanted = {(e.label, e.modality, json.dumps(asdict(e.span))): e.weight for e in decision.evidence}
        assert weights == pytest.approx(wanted, abs=1e-5)


def test_python_backend_logs_its_decisions(fake, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = TrafficLogOptions(tmp_path / "log", ("campaign", 'a "quoted" name'), 7, 1 << 30)
    write_repository(bundle, tmp_path / "models", options=ModelRepositoryOptions(log=log))
    assert "pyarrow" in (tmp_path / "models" / "README.md").read_text()
    monkeypatch.setattr(fake, "server", fake.Server(tmp_path / "models"))
    model = load(tmp_path / "models")
    columns = {"market": "fr", "campaign": "c1", 'a "quoted" name': 1}
    [response] = ask(fake, model, [as_json(Item("a", ("call now",), columns=columns))])
    assert not response.has_error()
    model.finalize()
    [row] = logged(tmp_path / "log")
    assert (row["id"], row["source"], row["market"], row["campaign"], row['a "quoted" name']) == ("a", "triton", "fr", "c1", "1")
    assert (row["action"], row["policy"], row["bundle"]) == ("remove", "house version 3", load_bundle(bundle).digest)
    assert row["reasons"][0]["label"] == "scam"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_python_backend_calls_only_the_needed_encoders(fake, server, model, exported, pattern: Sequence[str]) -> None:
    ask(fake, model, [as_json(make_item(pattern, 3, exported.inputs))])
    assert set(server.calls) == {"tiny_fusion", *(f"tiny_{m}" for m in pattern)}
    assert len(server.calls["tiny_fusion"]) == 1


def test_python_backend_encodes_repeated_media_once(fake, server, model, exported) -> None:
    text = as_json(make_item(["image"], 4, exported.inputs))
    ask(fake, model, [text])
    ask(fake, model, [text], [text])
    assert len(server.calls["tiny_image"]) == 1
    assert len(server.calls["tiny_fusion"]) == 3


def test_python_backend_answers_a_request_without_items(fake, server, model) -> None:
    [found] = ask(fake, model, [])
    assert {name: array.shape for name, array in tensors(found).items()} == {
        "probabilities": (0, 3),
        "action": (0,),
        "decision": (0,),
    }
    assert not server.calls


def test_python_backend_reports_undecodable_items(fake, server, model, bundle: Path, exported) -> None:
    good = make_item(["text"], 1, exported.inputs)
    items = [good, Item("broken", image=(b"no picture",)), Item("cut off", audio=(b"RIFF",), text=("word",)), good]
    [found] = ask(fake, model, [as_json(item) for item in items])
    expected = Scorer(bundle, threads=1).score(items)
    assert [decision.error is None for decision in expected] == [True, False, False, True]
    check(found, expected)


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"\xff",
        b"[]",
        b"{}",
        b'{"id": 1}',
        b'{"id": "1", "text": "word"}',
        b'{"id": "1", "image": ["*"]}',
        b'{"id": "1", "image": [1]}',
        b'{"id": "1", "audio": "AAAA"}',
        b'{"id": ""}',
        b'{"id": "' + b"x" * 257 + b'"}',
        b'{"id": "1", "columns": []}',
        b'{"id": "1", "columns": {"x": [1]}}',
        b'{"id": "1", "video": []}',
        b'{"id": "1", "id": "2"}',
        b'{"id": "\\ud800"}',
        b"[" * 100_000,
    ],
)
def test_python_backend_refuses_only_the_request_with_a_malformed_item(fake, server, model, exported, text: bytes) -> None:
    good = as_json(make_item(["text"], 1, exported.inputs))
    before, bad, after = ask(fake, model, [good], [good, text], [good])
    assert bad.error().code() == fake.TritonError.INVALID_ARG
    assert bad.error().message().startswith("item[1]")
    assert len(bad.error().message().splitlines()) == 1
    assert tensors(before)["probabilities"].tolist() == tensors(after)["probabilities"].tolist()


def test_python_backend_reports_an_encoder_error_to_its_request_only(fake, server, model, exported) -> None:
    text, image = (as_json(make_item([m], 2, exported.inputs)) for m in ("text", "image"))
    server.broken.add("tiny_image")
    first, second, third = ask(fake, model, [text], [text, image], [text])
    assert second.error().message() == "tiny_image: out of memory"
    assert second.error().code() == fake.TritonError.UNAVAILABLE
    assert tensors(first)["probabilities"].tolist() == tensors(third)["probabilities"].tolist()
    server.broken.clear()
    [again] = ask(fake, model, [text, image])
    assert np.isfinite(tensors(again)["probabilities"]).all()
    server.broken.add("tiny_fusion")
    [last] = ask(fake, model, [text])
    assert last.error().message() == "tiny_fusion: out of memory"


def test_read_items_reads_as_the_server_does(fake, exported) -> None:
    from vigil_serving.protocol.item_json import item_from_json
    from vigil_serving.triton.python_backend import read_items

    for item in made_items(exported, PATTERNS, 16):
        assert read_items(np.array([as_json(item)], np.object_)) == [item_from_json(json.loads(as_json(item)), "item")]


@pytest.mark.parametrize("file", ["thresholds.json", "tokenizer/tokenizer.json", "policy.json", "added.json"])
def test_python_backend_refuses_altered_bundle_files(fake, server, repository: Path, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(repository, tmp_path / "models")
    with (copy / "tiny" / "1" / "bundle" / file).open("a") as opened:
        opened.write(" ")
    with pytest.raises(UserError, match=f"{file} was (changed|added) after the export"):
        load(copy)


@pytest.mark.parametrize("part", ["text", "image", "audio", "fusion"])
def test_python_backend_refuses_altered_graphs(fake, server, repository: Path, tmp_path: Path, part: str) -> None:
    copy = shutil.copytree(repository, tmp_path / "models")
    graph = copy / f"tiny_{part}" / "1" / "model.onnx"
    with graph.open("ab") as opened:
        opened.write(b" ")
    with pytest.raises(UserError, match=r"model\.onnx was changed after the export"):
        load(copy)
    graph.unlink()
    load(copy).finalize()
    assert f"tiny_{part}" in fake.Logger.warnings.pop()
    assert not fake.Logger.warnings


def test_write_repository_is_self_contained(fake, bundle: Path, tmp_path: Path, exported, monkeypatch) -> None:
    gone = shutil.copytree(bundle, tmp_path / "gone")
    write_repository(gone, tmp_path / "first")
    expected = Scorer(gone, threads=1).score([item := make_item(MODALITIES, 2, exported.inputs)])
    shutil.rmtree(gone)
    moved = (tmp_path / "first").rename(tmp_path / "elsewhere")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    monkeypatch.setattr(fake, "server", fake.Server(moved))
    model = load(moved)
    check(ask(fake, model, [as_json(item)])[0], expected)
    model.finalize()
    facts = moved / "tiny" / "1" / "bundle"
    assert {path.relative_to(facts).as_posix() for path in facts.rglob("*") if path.is_file()} == {
        *("bundle.json", "taxonomy.yaml", "thresholds.json", "calibration.json", "policy.json", "inputs.json"),
        *("tokenizer/tokenizer.json", "README.md", "manifest.json"),
    }


def test_write_repository_of_another_variant_has_its_encoders(fake, bundle: Path, tmp_path: Path, exported, monkeypatch) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    config = json.loads((copy / "bundle.json").read_text())
    config["graphs"]["text.int8"] = {**config["graphs"]["text"], "file": "onnx/text.int8.onnx"}
    config["variants"]["int8"] = {**config["variants"]["fp32"], "text": "text.int8"}
    graph = onnx.load(copy / "onnx" / "text.onnx")
    graph.doc_string = "same graph, another hash"
    onnx.save(graph, copy / "onnx" / "text.int8.onnx")
    write_json(copy / "bundle.json", config)
    manifest.write_manifest(copy)
    write_repository(copy, tmp_path / "models", options=ModelRepositoryOptions(variant="int8"))
    assert (tmp_path / "models" / "tiny_text" / "1" / "model.onnx").read_bytes() == (
        copy / "onnx" / "text.int8.onnx"
    ).read_bytes()
    assert not list((tmp_path / "models" / "tiny").rglob("*.onnx"))
    monkeypatch.setattr(fake, "server", fake.Server(tmp_path / "models"))
    model, item = load(tmp_path / "models"), make_item(["text"], 2, exported.inputs)
    check(ask(fake, model, [as_json(item)])[0], Scorer(copy, threads=1, variant="int8").score([item]))
    model.finalize()


def test_write_repository_writes_nothing_if_it_refuses(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "thresholds.json").write_text("{}")
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "file").write_text("")
    for arguments, line in (
        ((copy, tmp_path / "to", {}), "thresholds.json was changed"),
        ((bundle, tmp_path / "occupied", {}), "already exists"),
        ((bundle, tmp_path / "occupied" / "file", {}), "already exists"),
        ((bundle, tmp_path / "to", {"options": ModelRepositoryOptions(variant="int3")}), "has no variant int3"),
        ((bundle, tmp_path / "to", {"name": "a/b"}), "a/b: not a valid name of a Triton model"),
    ):
        with pytest.raises(UserError, match=line):
            write_repository(*arguments[:2], **arguments[2])
    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    with pytest.raises(UserError, match=r"pip install 'vigil\[triton\]'"):
        write_repository(bundle, tmp_path / "to")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "occupied"]


def test_write_repository_writes_nothing_if_a_config_differs_from_its_graph(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(config_pbtxt.TYPES, "uint8", "TYPE_INT8")
    monkeypatch.setattr(config_pbtxt, "_node_type", lambda node: ("TYPE_UINT8", ()))
    with pytest.raises(UserError, match="input pixels is"):
        write_repository(bundle, tmp_path / "to")
    assert not list(tmp_path.iterdir())


def test_triton_command_passes_its_options(bundle: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    command.register(app)
    app.callback()(lambda: None)
    options = ["--name", "guard", "--max-batch", "32", "--queue-delay", "500", "--instances", "3", "--encoder-instances", "2"]
    found = CliRunner().invoke(
        app, ["triton", str(bundle), "--to", str(tmp_path / "m"), *options, "--threads", "1", "--log", "/log"]
    )
    assert found.exit_code == 0, found.output
    assert "models: guard, guard_text, guard_image, guard_audio, guard_fusion" in found.output
    text, python_model = (
        config_pbtxt.read_config(tmp_path / "m" / "guard_text"),
        config_pbtxt.read_config(tmp_path / "m" / "guard"),
    )
    assert text.max_batch_size == 32
    assert list(text.dynamic_batching.preferred_batch_size) == [4, 8, 16, 32]
    assert text.dynamic_batching.max_queue_delay_microseconds == 500
    assert (text.instance_group[0].count, python_model.instance_group[0].count) == (2, 3)
    assert python_model.parameters["log"].string_value == "/log"
    assert text.parameters["intra_op_thread_count"].string_value == "1"
    assert python_model.parameters["bundle"].string_value == sha256_file(bundle / manifest.MANIFEST)
    assert '.infer("guard", [given])' in (tmp_path / "m" / "README.md").read_text()


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    most=st.integers(1, 9),
    multiple=st.integers(1, 50),
    data=st.data(),
)
def test_split_segments_sends_each_segment_once_in_batches_of_one_shape(fake_remote, lengths, most, multiple, data) -> None:
    width = data.draw(st.integers(max([*lengths, 1]), 40))
    mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
    ids = mask * np.arange(1, len(lengths) + 1)[:, None]
    limits = fake_remote.EncoderRequestLimits(most, multiple, 40)
    batches = list(fake_remote.split_segments({"input_ids": ids, "attention_mask": mask}, limits))
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == list(range(len(lengths)))
    for rows, inputs in batches:
        assert 1 <= len(rows) <= most
        tokens = inputs["input_ids"].shape[1]
        assert inputs["attention_mask"].shape == inputs["input_ids"].shape == (len(rows), tokens)
        assert tokens == 40 or tokens % multiple == 0
        for row, line in zip(rows, inputs["input_ids"], strict=True):
            assert line.sum() == lengths[row] * (row + 1), "every token is kept"
            assert tokens - max(lengths[row], 1) < multiple or tokens == 40
    extra = len(batches) - len({inputs["input_ids"].shape[1] for _, inputs in batches})
    assert extra <= len(lengths) / most, "no more requests than the shapes and the limit require"


@pytest.fixture(scope="module")
def fake_remote(fake: ModuleType) -> ModuleType:
    from vigil_serving.triton import remote_sessions

    return remote_sessions


@pytest.mark.parametrize("multiple", [1, 16, 64])
def test_split_segments_padding_changes_only_rounding(fake_remote, exported, multiple: int) -> None:
    from vigil_data.decode import Decoder
    from vigil_data.loading.packing import pack
    from vigil_serving.runtime.onnx_sessions import open_session

    decoder = Decoder(exported.inputs, ())
    feeds = pack([decoder.decode(make_item(["text"], n, exported.inputs)) for n in range(30)]).segments["text"].inputs
    session = open_session(exported.bundle / "onnx" / "text.onnx", threads=1)
    for rows, inputs in fake_remote.split_segments(feeds, fake_remote.EncoderRequestLimits(4, multiple, 24)):
        for place, row in enumerate(rows):
            alone = {name: array[[row], : int(feeds["attention_mask"][row].sum())] for name, array in feeds.items()}
            np.testing.assert_allclose(session.run(None, dict(inputs))[0][place], session.run(None, alone)[0][0], atol=2e-6)
