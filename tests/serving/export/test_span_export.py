"""Spans in bundles: the runtime marks the characters that the trained model marks, in every variant and in `vigil score`."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from vigil_data.dataset.dataset import write
from vigil_data.decode import Decoder
from vigil_data.decode.text_spans import marked_spans
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import pack
from vigil_modeling.specs import MeanFusion
from vigil_serving.bundle.load import load_bundle
from vigil_serving.export.pipeline import export_model
from vigil_serving.export.publish import Provenance
from vigil_serving.parity.cases import Case, make_item
from vigil_serving.parity.compare import failure
from vigil_serving.parity.span_parity import compare_spans
from vigil_serving.runtime.scorer import Scorer
from vigil_serving.scoring.score import score_dataset
from vigil_serving.specs import ExportSpec

THRESHOLDS = {"scam": 0.0, "promotion": 1.0, "tobacco": 0.0}
SPANS = ("promotion", "tobacco")
LONG = "call now and win 99 dollars " * 3


@pytest.fixture(scope="module", params=["fusion", "guard"])
def marking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A model with spans of two labels, its inputs and its bundle with fp16; one label is always decided, the other never."""
    if request.param == "fusion":
        taxonomy = request.getfixturevalue("taxonomy")
        model, inputs = request.getfixturevalue("make_tiny")(MeanFusion(), "text", "image", spans=SPANS)
    else:
        taxonomy = request.getfixturevalue("guard_taxonomy")
        model, inputs = request.getfixturevalue("make_tiny_guard")("llama", "text", "image", spans=SPANS)
    to = tmp_path_factory.mktemp("marking") / "bundle"
    examples = [make_item(["text", "image"][n % 2 :], 1000 + n, inputs, placed=True) for n in range(4)]
    spec = ExportSpec(formats=("fp16", *(("onnx-single", "torchscript") if request.param == "fusion" else ())))
    export_model(model, inputs, taxonomy, THRESHOLDS, examples, to=to, provenance=Provenance("marking"), spec=spec)
    return model, inputs, to


def test_exported_spans_are_those_of_the_trained_model(marking) -> None:
    model, inputs, to = marking
    bundle = load_bundle(to)
    assert bundle.spans == SPANS
    assert bundle.graphs["text"].outputs["spans"].shape[-1] == 2
    parities = {parity.variant: parity for parity in bundle.metadata.parity if parity.backend == "ONNX, spans"}
    assert set(parities) == {"fp32", "fp16"}
    assert (parities["fp32"].flips, failure(parities["fp32"])) == (0, None)
    assert parities["fp32"].decisions > 500
    items = [Item("0", (LONG, "red 5")), Item("none"), Item("1", ("win a car",), image=make_item(["image"], 3, inputs).image)]
    decisions = Scorer(to, threads=1).score(items)
    decoder = Decoder(inputs, ())
    for item, decision in zip(items, decisions, strict=True):
        with torch.no_grad():
            found = model(collate(pack([decoder.decode(item)]))).spans_STK
        due = ()
        if found is not None:
            due = marked_spans("tobacco", decoder.token_places(item), found[..., 1].nan_to_num(nan=-torch.inf).numpy())
        assert [(s.label, s.index, s.start, s.stop) for s in decision.spans] == [(s.label, s.index, s.start, s.stop) for s in due]
        np.testing.assert_allclose([s.probability for s in decision.spans], [s.probability for s in due], atol=1e-4)
    assert decisions[0].spans, "the test needs a span"
    assert len({s.stop - s.start for s in decisions[0].spans}) > 1
    scorer = Scorer(to, threads=1)
    once, again = ([(s.index, s.start, s.stop) for s in scorer.score(items)[0].spans] for _ in range(2))
    assert again == once, "cached texts keep their spans"


def test_compare_spans_notices_other_spans(marking) -> None:
    model, inputs, to = marking
    items = [Item("0", (LONG,))]
    packed = pack([Decoder(inputs, ()).decode(item) for item in items])
    with torch.no_grad():
        expected = model(collate(packed)).spans_STK.numpy()
    case = Case("case", tuple(items), packed, golden=False)
    assert failure(compare_spans(load_bundle(to), "fp32", [case], [expected])) is None
    expected[0, 3, 1] *= -1
    assert "1 of" in str(failure(compare_spans(load_bundle(to), "fp32", [case], [expected])))


def test_score_writes_the_spans_of_decided_labels(marking, tmp_path: Path) -> None:
    _, _, to = marking
    write(tmp_path / "data", [Item("0", (LONG,)), Item("1", (), (make_item(["image"], 3, marking[1]).image))])
    score_dataset(to, tmp_path / "data", tmp_path / "scores.parquet", threads=1)
    rows = {row["id"]: row for row in pq.read_table(tmp_path / "scores.parquet").to_pylist()}
    [decision] = Scorer(to, threads=1).score([Item("0", (LONG,))])
    assert [(s["label"], s["start"], s["stop"]) for s in rows["0"]["spans"]] == [
        (s.label, s.start, s.stop) for s in decision.spans
    ]
    assert rows["1"]["spans"] == []
