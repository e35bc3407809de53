"""The model card is sound Markdown with sound YAML on top, whatever names and descriptions hold."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from vigil_serving.bundle import load as bundles
from vigil_serving.bundle.metadata import Licence
from vigil_serving.bundle.model_card import card, cell


def test_head_is_what_the_hub_reads(exported) -> None:
    _, head, body = (exported.bundle / "README.md").read_text().split("---\n", 2)
    facts = YAML(typ="safe", pure=True).load(head)
    assert facts["library_name"] == "vigil"
    assert {"text", "image", "audio", "onnx"} <= set(facts["tags"])
    assert body.startswith("\n# tiny\n")


def test_the_hub_s_own_library_reads_it(exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from huggingface_hub import ModelCard, ModelCardData

    licences = {"text": Licence("apache-2.0", "somewhere"), "tokenizer": Licence("Apache-2.0", "somewhere")}
    for found, wanted in (
        (licences, "apache-2.0"),
        ({**licences, "image": Licence("not stated", "elsewhere")}, "other"),
        ({}, None),
    ):
        bundle = bundles.read(exported.bundle)
        bundle = replace(bundle, signature=replace(bundle.signature, licences=found))
        read = ModelCard(card(bundle, exported.taxonomy, {}), ignore_metadata_errors=False)
        assert isinstance(read.data, ModelCardData)
        assert read.data.license == wanted
        assert read.data.library_name == "vigil"
        assert {"content-safety", "onnx"} <= set(read.data.tags)
        assert ("## Licences" in read.text) == bool(found)
        assert "| text | apache-2.0 | somewhere |" in read.text or not found


def test_tables_are_whole(exported) -> None:
    label = {"known": 4, "positive": 2, "average_precision": 0.75, "auroc": None, "precision": 1.0, "recall": 0.5}
    findings = {"overall": {"items": 5, "labels": {"scam": label}}}
    text = card(bundles.read(exported.bundle), exported.taxonomy, {"evaluation": {"test": findings}})
    assert "| scam | 4 | 2 | 0.750 | - | 1.000 | 0.500 |" in text
    assert "| scam | 0.45 |  | 1 | tricks \\| for money &lt;b&gt;and&lt;/b&gt; more |" in text
    assert "| dataset.version | 3 |" in text
    assert text.count("(allowed 0.0001) | 0 | 0 of 30 | 0 | - |\n") == 4, "a row of the parity table for each form"
    for block in text.split("\n\n"):
        if block.lstrip().startswith("|"):
            widths = {row.replace("\\|", "").count("|") for row in block.strip().splitlines()}
            assert len(widths) == 1, block


@given(st.text())
def test_a_cell_stays_a_cell(text: str) -> None:
    made = cell(text)
    assert len(made.splitlines()) <= 1
    assert "|" not in made.replace("\\|", "")
    assert "<" not in made
