"""Licences of weights: from the recipe, then the model card next to the weights, then the package around them."""

from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from vigil_data.specs import Hub, Local, Package
from vigil_serving.bundle import licences as module
from vigil_serving.bundle.licences import NOT_STATED, hub_name, licence, licences
from vigil_serving.bundle.metadata import Licence

CARD = "---\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n"


def test_licence_reads_the_model_card_next_to_local_weights(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    assert licence(Local(path=str(weights))).name == NOT_STATED
    (tmp_path / "README.md").write_text(CARD)
    for path in (weights, tmp_path):
        assert licence(Local(path=str(path))) == Licence("apache-2.0", f"{path}; its model card")
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: llama3\n---\n")
    assert licence(Local(path=str(weights))).name == "llama3"


@pytest.mark.parametrize("text", ["", "# no head", "---\nlicense: [", "---\n- a list\n---\n", "--- not yaml: : :\n---", "---\n"])
def test_licence_ignores_a_model_card_without_valid_front_matter(tmp_path: Path, text: str) -> None:
    (tmp_path / "README.md").write_text(text)
    assert licence(Local(path=str(tmp_path))).name == NOT_STATED
    assert licence(Local(path=str(tmp_path / "nowhere"))).name == NOT_STATED


@pytest.mark.parametrize(
    ("metadata", "name"),
    [
        ("License-Expression: BSD-3-Clause\nLicense: x", "BSD-3-Clause"),
        ("Classifier: License :: OSI Approved :: MIT License\nLicense: mine", "MIT"),
        ("Classifier: License :: OSI Approved :: GNU Affero General Public License v3", "GNU Affero General Public License v3"),
        ("License: Apache 2", "Apache 2"),
        ("License: UNKNOWN", None),
        ("License: the full\n        text of it", None),
        ("Name: nothing", None),
    ],
)
def test_licence_reads_package_metadata(tmp_path: Path, metadata: str, name: str | None) -> None:
    folder = tmp_path / "weights-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nVersion: 1.0\n{metadata}\n")
    assert module._from_metadata(PathDistribution(folder)) == name


def test_licence_of_a_package_with_and_without_a_model_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = licence(Package(package="pytest"))
    assert found.name == "MIT"
    assert found.origin.startswith("package pytest; metadata of pytest ")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "README.md").write_text(CARD)
    monkeypatch.syspath_prepend(tmp_path)
    assert licence(Package(package="package")) == Licence("apache-2.0", "package package; its model card")


def test_licence_reads_the_cache_of_the_hub_and_downloads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(tmp_path / "README.md"))
    assert licence(Hub(id="a/b", revision="main")) == Licence("apache-2.0", "hub a/b at main; its model card")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    assert licence(Hub(id="a/b")) == Licence(NOT_STATED, "hub a/b")


def test_licences_of_the_recipe_take_precedence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    source = Local(path=str(tmp_path))
    found = licences({"text": source, "tokenizer": source}, {"text": "CC-BY-4.0"})
    assert [one.name for one in found.values()] == ["CC-BY-4.0", "apache-2.0"]
    assert "stated in the recipe" in found["text"].origin


def test_hub_name_of_several_licences() -> None:
    def of(*names: str) -> str | None:
        return hub_name({str(n): Licence(name, "") for n, name in enumerate(names)})

    assert (of(), of("MIT"), of("MIT", "mit"), of("MIT", "Apache-2.0"), of("MIT", NOT_STATED)) == (
        None,
        "mit",
        "mit",
        "other",
        "other",
    )


def test_licence_reads_the_metadata_of_a_gguf_file(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert licence(Local(path=str(path))) == Licence("apache-2.0", f"{path}; its metadata")
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    assert licence(Local(path=str(path))).name == "gemma"
