"""Registry: what is pulled is what was pushed, whatever breaks off or was altered in between."""

import gc
import json
import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from vigil.cli import build
from vigil.workflows.tracking.registry import pull, push, split_place
from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import sha256_file
from vigil_serving.bundle.load import load_bundle
from vigil_serving.bundle.manifest import list_files
from vigil_serving.bundle.signing import sign_bundle

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # raised by the hub's library


@pytest.fixture
def signed(bundle_copy, tmp_path):
    """A signed bundle and its public key."""
    key = Ed25519PrivateKey.generate()
    sign_bundle(bundle_copy, key)
    public = tmp_path / "public.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return bundle_copy, public


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_push_and_pull_by_folder(signed, tmp_path):
    bundle, public = signed
    digest = load_bundle(bundle).digest
    assert push(bundle, str(tmp_path / "registry" / "scam")) == (str(tmp_path / "registry" / "scam"), digest, True)
    assert not push(bundle, str(tmp_path / "registry" / "scam")).new
    pulled = pull(str(tmp_path / "registry" / "scam"), tmp_path / "here", public_key=public)
    assert (pulled.kind, pulled.version, pulled.digest) == ("bundle", digest, digest)
    assert contents(tmp_path / "here") == contents(bundle)


def test_push_and_pull_by_the_hub(signed, tmp_path, hub):
    bundle, public = signed
    first = push(bundle, "hf:team/scam")
    assert first.new
    assert hub.repositories["team/scam"].private
    assert hub.uploaded >= 1, "the graphs are large"
    again = push(bundle, "hf:team/scam")
    assert (again.version, again.new) == (first.version, False)
    assert len(hub.repositories["team/scam"].commits) == 2, "one when it was made, one push"
    pulled = pull(f"hf:team/scam@{first.version}", tmp_path / "here", public_key=public)
    assert pulled.version == first.version
    assert contents(tmp_path / "here") == contents(bundle)
    (bundle / "manifest.sig").unlink()
    (bundle / "thresholds.json").write_text(json.dumps({"scam": 0.3}))
    from vigil_serving.bundle.manifest import write_manifest

    write_manifest(bundle)
    with pytest.raises(UserError, match=r"lacks .*; export the bundle again"):
        push(bundle, "hf:team/scam")
    assert len(hub.repositories["team/scam"].commits) == 2


def test_push_replaces_the_files_of_an_older_bundle(signed, hub):
    bundle, _ = signed
    push(bundle, "hf:team/scam")
    (bundle / "README.md").unlink()
    from vigil_serving.bundle.manifest import write_manifest

    write_manifest(bundle)
    push(bundle, "hf:team/scam")
    assert set(hub.files("team/scam")) == {*contents(bundle), ".gitattributes"}


def test_pull_leaves_nothing_of_what_was_altered(signed, tmp_path, hub):
    bundle, _ = signed
    push(bundle, "hf:team/scam")
    hub.altered = "taxonomy.yaml"
    with pytest.raises(UserError, match=r"hf:team/scam: taxonomy\.yaml was changed after the export"):
        pull("hf:team/scam", tmp_path / "place" / "here")
    assert list((tmp_path / "place").iterdir()) == []
    hub.altered = ""
    assert contents(pull("hf:team/scam", tmp_path / "place" / "here").folder) == contents(bundle)


def test_push_and_pull_by_wandb(signed, tmp_path, wandb_server):
    bundle, public = signed
    first = push(bundle, "wandb:team/models/scam")
    assert first == ("wandb:team/models/scam", "team/models/scam:v0", True)
    assert push(bundle, "wandb:models/scam")[1:] == (first.version, False)
    pulled = pull("wandb:team/models/scam:v0", tmp_path / "here", public_key=public, verify=True)
    assert (pulled.kind, pulled.version, pulled.digest) == ("bundle", first.version, load_bundle(bundle).digest)
    assert contents(tmp_path / "here") == contents(bundle)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.fixture(params=["hf", "wandb"])
def registry(request, monkeypatch):
    """A place at a server, and the server."""
    import huggingface_hub.file_download as download

    server = request.getfixturevalue({"hf": "hub", "wandb": "wandb_server"}[request.param])
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    return f"{request.param}:team/models{'' if request.param == 'hf' else '/scam'}", server


@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")  # W&B's library
def test_pull_that_is_cut_keeps_the_files_that_are_right(registry, signed, tmp_path):
    """The next pull fetches only what is missing, altered, or of an older version."""
    place, server = registry
    bundle, public = signed
    push(bundle, place)
    server.broken = "taxonomy.yaml"
    with pytest.raises(Failure, match=r"team/models|127\.0\.0\.1"):
        pull(place, tmp_path / "place" / "here")
    gc.collect()  # files that W&B's library left open
    assert not (tmp_path / "place" / "here").exists()
    [kept] = [path for path in (tmp_path / "place").iterdir() if path.is_dir()]
    names = set(contents(bundle)) - {"manifest.sig"}
    there = {name for name in names if (kept / name).exists()}
    assert {"manifest.json", "onnx/fusion.onnx"} <= there
    (kept / "onnx" / "fusion.onnx").write_bytes(b"half")
    (kept / "of-another-version.txt").write_text("x")
    (kept / "manifest.sig").write_text("foreign")
    server.broken, server.sent = "", []
    pulled = pull(place, tmp_path / "place" / "here", public_key=public)
    fetched = set(server.sent) - {"", ".gitattributes", "manifest.json", "manifest.sig"}
    assert fetched == {*(names - there), "onnx/fusion.onnx"}
    assert contents(pulled.folder) == contents(bundle)
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["here"]


def test_pull_of_a_folder_that_is_cut_keeps_the_files_that_are_right(signed, tmp_path, monkeypatch):
    bundle, _ = signed
    push(bundle, str(tmp_path / "registry"))
    copied, copy = [], shutil.copy2

    def cut(source, to):
        copied.append(source)
        if len(copied) == 5:
            to.write_bytes(source.read_bytes()[:7])
            raise KeyboardInterrupt
        copy(source, to)

    monkeypatch.setattr(shutil, "copy2", cut)
    with pytest.raises(KeyboardInterrupt):
        pull(str(tmp_path / "registry"), tmp_path / "place" / "here")
    assert not (tmp_path / "place" / "here").exists()
    pull(str(tmp_path / "registry"), tmp_path / "place" / "here")
    assert [source for source in set(copied) if copied.count(source) > 1] == [copied[4]], "what was cut is copied again"
    assert contents(tmp_path / "place" / "here") == contents(bundle)
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["here"]


def test_pull_refuses_a_folder_in_use(signed, tmp_path):
    from vigil.workflows.tracking.pulled_folder import pulled_folder

    bundle, _ = signed
    push(bundle, str(tmp_path / "registry"))
    with pulled_folder(tmp_path / "here"), pytest.raises(UserError, match=r"here: process .* is pulling to it"):
        pull(str(tmp_path / "registry"), tmp_path / "here")
    with pytest.raises(UserError, match="already exists; name a new folder"):
        pull(str(tmp_path / "registry"), bundle)


def test_push_records_where_it_is(signed, tmp_path):
    from vigil_data.lineage import read_ledger

    bundle, _ = signed
    pushed = push(bundle, str(tmp_path / "registry"))
    graph = read_ledger()
    [edge] = graph.outputs(graph.find(bundle))
    assert (edge.role, edge.node.kind) == ("pushed", "publication")
    assert edge.node.facts == {"place": str(tmp_path / "registry"), "version": pushed.version}


def test_pull_names_the_mistake(signed, tmp_path, hub):
    bundle, public = signed
    with pytest.raises(UserError, match=r"^hf:team/nothing: no such repository, or it is private"):
        pull("hf:team/nothing", tmp_path / "a")
    push(bundle, "hf:team/scam")
    with pytest.raises(UserError, match=r"^hf:team/scam@v9: no such branch, tag or commit"):
        pull("hf:team/scam@v9", tmp_path / "a")
    (bundle / "manifest.sig").unlink()
    push(bundle, str(tmp_path / "unsigned"))
    with pytest.raises(UserError, match=f"^{tmp_path / 'unsigned'} is not signed"):
        pull(str(tmp_path / "unsigned"), tmp_path / "a", public_key=public)
    (tmp_path / "unsigned" / "taxonomy.yaml").write_text("changed")
    with pytest.raises(UserError, match=f"^{tmp_path / 'unsigned'}: taxonomy.yaml was changed after the export"):
        pull(str(tmp_path / "unsigned"), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("hf:team/scam", ("hf", "team/scam")),
        ("wandb:team/vigil/scam:v3", ("wandb", "team/vigil/scam:v3")),
        ("models/scam", ("folder", "models/scam")),
    ],
)
def test_split_place(place, expected):
    assert split_place(place) == expected


@pytest.mark.parametrize("place", ["hf:scam", "wandb:scam", "s3:bucket/scam", "gs:x"])
def test_split_place_refuses(place):
    with pytest.raises(UserError, match=f"^{place}: "):
        split_place(place)


def test_pushed_run_is_evaluated_elsewhere_as_here(make_recipe, material, train, tmp_path):
    """The other machine has none of the recipe's files: the tokenizer comes with the run, and the dataset is named."""
    from vigil.workflows.evaluate import evaluate
    from vigil_data.dataset.dataset import Dataset
    from vigil_training.runs.run import Run, recipe_digest

    tokenizer = shutil.copy(material / "tokenizer.json", tmp_path / "tokenizer.json")
    dataset = shutil.copytree(material / "dataset", tmp_path / "dataset")
    changes = {"inputs__text__tokenizer": {"kind": "local", "path": str(tokenizer)}, "evaluation__replicates": 20}
    run = train(make_recipe(data__dataset=str(dataset), training__max_steps=4, **changes), tmp_path / "run")
    here = evaluate(run)
    assert push(run.path, str(tmp_path / "registry")).new
    assert not push(run.path, str(tmp_path / "registry")).new
    (tmp_path / "tokenizer.json").unlink()
    pulled = pull(str(tmp_path / "registry"), tmp_path / "there")
    dataset.rename(tmp_path / "moved")
    there = evaluate(Run(pulled.folder), Dataset(tmp_path / "moved"), to=tmp_path / "evaluation")
    assert there.results.overall == here.results.overall
    assert there.table.equals(here.table)
    names = set(list_files(pulled.folder))
    assert "evaluation/test/metrics.json" in names
    assert "evaluation/test/report.html" not in names, "it quotes items, which stay at home by default"
    from huggingface_hub import ModelCard

    card = ModelCard((pulled.folder / "README.md").read_text(), ignore_metadata_errors=False)
    (found,) = [one for one in card.data.eval_results if one.metric_type == "average_precision"]
    assert found.metric_value == here.results.overall.macro["average_precision"].value
    assert (found.dataset_name, found.dataset_split) == ("dataset", "test")
    own = card.data.to_dict()["vigil"]
    assert (own["run"], own["recipe"]) == (run.run_id, recipe_digest(run.recipe))
    assert own["evaluations"] == {"test": sha256_file(here.folder / "metrics.json")}


def test_commands_push_and_pull(signed, tmp_path):

    bundle, public = signed
    ran = CliRunner().invoke(build(), ["push", str(bundle), str(tmp_path / "registry")])
    assert ran.exit_code == 0, ran.output
    assert f"{tmp_path / 'registry'}: {load_bundle(bundle).digest}\n" in ran.output
    arguments = ["--to", str(tmp_path / "here"), "--public-key", str(public)]
    ran = CliRunner().invoke(build(), ["pull", str(tmp_path / "registry"), *arguments])
    assert ran.exit_code == 0, ran.output
    assert f"every file is as it was pushed, sha256 of the manifest {load_bundle(bundle).digest}" in ran.output
