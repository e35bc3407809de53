"""Artifacts: what is sent once is found by its digest, fetched whole, and linked in a registry; errors are of one line."""

import os

import fake_wandb
import pytest

from vigil_data.errors import Failure, UserError
from vigil_training.tracking import artifacts
from vigil_training.tracking.artifacts import Target

DIGEST = "ab" * 32


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    (tmp_path / "bundle" / "models" / "model.onnx").write_bytes(bytes(range(256)))
    return tmp_path / "bundle"


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_sent_once_fetched_whole_and_linked(wandb_server, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    name, sent = artifacts.log_folder(folder, "team/models/scam", type="bundle", digest=DIGEST, metadata={"labels": ["scam"]})
    assert (name, sent) == ("team/models/scam:v0", True)
    runs = set(wandb_server.runs)
    again = artifacts.log_folder(folder, "models/scam", type="bundle", digest=DIGEST, aliases=["champion"])
    assert (again, wandb_server.runs, len(wandb_server.artifacts.versions)) == ((name, False), runs, 1)

    facts = fetch("models/scam:champion", tmp_path / "fetched")
    assert facts == {"labels": ["scam"], "digest": DIGEST, "artifact": name}
    assert content(tmp_path / "fetched") == content(folder)
    with pytest.raises(UserError, match="has no artifact team/models/scam:v9"):
        fetch("team/models/scam:v9", tmp_path / "other")

    target = Target(wandb_server.url, "team", "models")
    assert artifacts.link_to_registry(target, "scam", "cd" * 32, "model/scam", "champion") is None
    linked = artifacts.link_to_registry(target, "scam", DIGEST, "model/scam", "champion")
    assert linked == "wandb-registry-model/scam:champion"
    assert wandb_server.artifacts.linked()["wandb-registry-model/scam:champion"] == DIGEST
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "fetched", "home"]
    assert list(home.iterdir()) == [], "W&B writes nothing to the home folder"

    wandb_server.refusals["ArtifactMembershipByName"] = "permission denied\nfor viewer"
    with pytest.raises(Failure) as raised:
        fetch("models/scam", tmp_path / "refused")
    assert str(raised.value).startswith(wandb_server.url)
    assert "\n" not in str(raised.value)


def fetch(source, to, first="manifest.json"):
    return artifacts.fetch_folder(source, to, first=first, then=lambda: None)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("refuses", "cannot be reached (Connection refused)"),
        ("401", "the server refuses the API key (HTTP 401); run `wandb login --relogin`"),
        ("no key", "no API key for 127.0.0.1; run `wandb login`"),
    ],
)
def test_open_target_names_what_is_wrong(trouble, message, wandb_server, monkeypatch):
    if trouble == "refuses":
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{fake_wandb.unused_port()}")
    elif trouble == "401":
        wandb_server.status = 401
    else:
        monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(Failure) as raised:
        artifacts.open_target("team", "vigil")
    assert str(raised.value) == f"{os.environ['WANDB_BASE_URL']}: {message}"


@pytest.mark.parametrize("name", ["scam", "a/b/c/d", "/scam", "team//scam"])
def test_names_at_wandb_have_two_or_three_parts(name):
    with pytest.raises(UserError, match="is no name at W&B"):
        artifacts.registry_path(name)


def test_registry_path_takes_the_prefix_once():
    assert artifacts.registry_path("model/scam") == artifacts.registry_path("wandb-registry-model/scam")
    assert artifacts.registry_path("company/model/scam") == "company/wandb-registry-model/scam"


def test_collection_name_has_only_characters_that_wandb_allows():
    assert artifacts.collection_name("dataset", "posts (2026)/ä:b") == "dataset-posts--2026----b"
    assert len(artifacts.collection_name("dataset", "x" * 500)) == 120
