"""Model card: valid front matter and Markdown tables for any names and descriptions."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from vigil_serving.bundle.load import load_bundle
from vigil_serving.bundle.metadata import Licence
from vigil_serving.bundle.model_card import markdown_cell, model_card


def test_model_card_front_matter_has_the_fields_of_the_hub(exported) -> None:
    _, head, body = (exported.bundle / "README.md").read_text().split("---\n", 2)
    facts = YAML(typ="safe", pure=True).load(head)
    assert facts["library_name"] == "vigil"
    assert {"text", "image", "audio", "onnx"} <= set(facts["tags"])
    assert body.startswith("\n# tiny\n")


def test_model_card_is_read_by_the_library_of_the_hub(exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from huggingface_hub import ModelCard, ModelCardData

    licences = {"text": Licence("apache-2.0", "somewhere"), "tokenizer": Licence("Apache-2.0", "somewhere")}
    for found, wanted in (
        (licences, "apache-2.0"),
        ({**licences, "image": Licence("not stated", "elsewhere")}, "other"),
        ({}, None),
    ):
        bundle = load_bundle(exported.bundle)
        metadata = replace(bundle.metadata, licences=found)
        read = ModelCard(model_card(bundle, metadata, exported.taxonomy, {}), ignore_metadata_errors=False)
        assert isinstance(read.data, ModelCardData)
        assert read.data.license == wanted
        assert read.data.library_name == "vigil"
        assert {"content-safety", "onnx"} <= set(read.data.tags)
        assert ("## Licences" in read.text) == bool(found)
        assert "| text | apache-2.0 | somewhere |" in read.text or not found


def test_model_card_tables_have_equal_rows(exported) -> None:
    label = {"known": 4, "positive": 2, "average_precision": 0.75, "auroc": None, "precision": 1.0, "recall": 0.5}
    findings = {"overall": {"items": 5, "labels": {"scam": label}}}
    bundle = load_bundle(exported.bundle)
    text = model_card(bundle, bundle.metadata, exported.taxonomy, {"test": findings})
    assert "| scam | 4 | 2 | 0.750 | - | 1.000 | 0.500 |" in text
    assert "| scam | 0.45 |  | 1 | tricks \\| for money &lt;b&gt;and&lt;/b&gt; more |" in text
    assert "| dataset.version | 3 |" in text
    row = r"\(allowed 0\.0001\) \| 0 \| 0 of 30 \| 0 \| - \| \d\.\de[+-]\d\d \(allowed 0\.0001\) \|\n"
    assert len(re.findall(row, text)) == 4, "one row of the parity table for each backend"
    for block in text.split("\n\n"):
        if block.lstrip().startswith("|"):
            widths = {row.replace("\\|", "").count("|") for row in block.strip().splitlines()}
            assert len(widths) == 1, block


@given(st.text())
def test_markdown_cell_stays_within_its_cell(text: str) -> None:
    made = markdown_cell(text)
    assert len(made.splitlines()) <= 1
    assert "|" not in made.replace("\\|", "")
    assert "<" not in made
