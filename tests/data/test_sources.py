"""Sources are found without importing or downloading what need not be, and every absence is one clear line."""

import sys

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from vigil_data.errors import UserError
from vigil_data.sources import resolve
from vigil_data.specs import Hub, Local, Package


def test_resolve_local_file_and_folder(tmp_path, monkeypatch):
    (tmp_path / "weights.bin").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert resolve(Local(path="weights.bin")) == tmp_path / "weights.bin"
    assert resolve(Local(path=str(tmp_path))) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(Local(path="~/weights.bin")) == tmp_path / "weights.bin"


def test_resolve_names_a_loop_of_links(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop: is a loop of symbolic links"):
        resolve(Local(path=str(tmp_path / "loop")))


def test_resolve_package_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "vigil_test_weights"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "models" / "w.bin").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve(Package(package="vigil_test_weights", path="models/w.bin")) == package / "models" / "w.bin"
    assert resolve(Package(package="vigil_test_weights.models", path="w.bin")) == package / "models" / "w.bin"
    assert resolve(Package(package="vigil_test_weights")) == package
    assert "vigil_test_weights" not in sys.modules


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (Local(path="nowhere/at/all"), "nowhere/at/all: no such file or folder"),
        (Package(package="no_such_package_anywhere"), "package no_such_package_anywhere: not installed"),
        (Package(package=""), "package : not installed"),
        (Package(package=".relative"), "package .relative: not installed"),
        (Package(package="numpy", path="no/such.file"), "package numpy: has no file or folder no/such.file"),
        (Package(package="this", path="x"), "package this: is a single module"),
        (Hub(id="not a name"), "hub not a name: invalid repository name"),
    ],
)
def test_resolve_missing_source_is_one_clear_line(source, line):
    with pytest.raises(UserError) as caught:
        resolve(source)
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].startswith(line)
    assert "\n" not in caught.value.lines[0]


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache that holds one repository, as huggingface_hub lays it out, and no network."""
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("a" * 40)
    (snapshot / "inner").mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "inner" / "w.bin").write_bytes(b"x")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("path", ["", "config.json", "inner", "inner/w.bin"])
def test_resolve_hub_from_the_cache(hub_cache, path):
    assert resolve(Hub(id="owner/name", path=path)) == hub_cache / path


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (Hub(id="owner/other"), "hub owner/other: cannot be downloaded and is not in the cache ("),
        (Hub(id="owner/name", revision="v2"), "hub owner/name at v2: cannot be downloaded and is not in the cache ("),
        (Hub(id="owner/name", path="absent.bin"), "hub owner/name: has no file or folder absent.bin"),
    ],
)
def test_resolve_hub_absence_is_one_clear_line(hub_cache, source, line):
    with pytest.raises(UserError) as caught:
        resolve(source)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError, "gated; accept its licence"),
        (errors.RepositoryNotFoundError, "no such repository"),
        (errors.RevisionNotFoundError, "no such branch, tag or commit"),
        (ConnectionError, "cannot be downloaded"),
    ],
)
def test_resolve_hub_refusal_is_one_clear_line(monkeypatch, error, words):
    def refuse(*args, **kwargs):
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=words) as caught:
        resolve(Hub(id="owner/name"))
    assert "\n" not in str(caught.value)


def test_resolve_hub_repository_skips_unread_formats(monkeypatch, tmp_path):
    asked = {}

    def download(repository, **kwargs):
        asked.update(kwargs)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    resolve(Hub(id="owner/name", revision="v1"))
    assert asked["revision"] == "v1"
    assert "*.onnx" in asked["ignore_patterns"]
    assert asked["allow_patterns"] is None
    (tmp_path / "model.onnx").write_bytes(b"x")
    resolve(Hub(id="owner/name", path="model.onnx"))  # asked for by name, it is fetched
    assert asked["ignore_patterns"] is None
    assert "model.onnx" in asked["allow_patterns"]
