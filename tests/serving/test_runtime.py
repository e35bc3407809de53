"""The runtime: what it decides depends on the item alone, and torch is not needed for it."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.batch import collate
from vigil_data.decode import Decoder
from vigil_data.items import Item
from vigil_data.pack import pack
from vigil_serving import embeddings, runtime, sessions
from vigil_serving.cases import make_item
from vigil_serving.runtime import Scorer

PATTERNS = [["text", "image", "audio"], ["text"], [], ["audio"], ["image"], ["text", "audio"]]


@pytest.fixture(scope="module")
def scorer(exported) -> Scorer:
    return Scorer(exported.bundle, threads=1)


@pytest.fixture(scope="module")
def items(exported) -> list[Item]:
    return [make_item(PATTERNS[n % 6], n, exported.inputs) for n in range(30)]


def test_decides_as_the_model_does(scorer: Scorer, items: list[Item], exported) -> None:
    decoder = Decoder(exported.inputs, ())
    for item, decision in zip(items, scorer.score(items), strict=True):
        with torch.no_grad():
            prediction = exported.model(collate(pack([decoder.decode(item)])))
        wanted = torch.sigmoid(prediction.logits_NL)[0].numpy()
        np.testing.assert_allclose(list(decision.probabilities.values()), wanted, atol=1e-5)
        assert decision.id == item.id
        assert decision.labels == tuple(
            label for label, p in zip(exported.thresholds, wanted, strict=True) if p >= exported.thresholds[label]
        )
        for evidence in decision.evidence:
            column = list(exported.thresholds).index(evidence.label)
            weights = prediction.evidence[evidence.modality][:, column].numpy()
            assert np.abs(weights - evidence.weight).min() < 1e-5
        segments = sum(len(e) for e in prediction.evidence.values())
        assert len(decision.evidence) == segments * len(decision.labels)


def test_batches_do_not_matter(scorer: Scorer, items: list[Item], exported, monkeypatch: pytest.MonkeyPatch) -> None:
    together = scorer.score(items)
    monkeypatch.setattr(runtime, "FUSION_TOKENS", 5)
    monkeypatch.setattr(runtime, "GATHER_ITEMS", 7)
    monkeypatch.setattr(embeddings, "RUN_LIMITS", {"text": 30, "image": 1, "audio": 2})
    for a, b in zip(together, Scorer(exported.bundle, cache_bytes=0).score(items), strict=True):
        assert (a.id, a.labels, a.cut) == (b.id, b.labels, b.cut)
        np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-5)


def test_undecodable_items_keep_their_place(scorer: Scorer, items: list[Item]) -> None:
    mixed = [items[0], Item("broken", image=(b"no picture",)), items[1]]
    decisions = scorer.score(mixed)
    assert [decision.id for decision in decisions] == [items[0].id, "broken", items[1].id]
    assert decisions[1].probabilities == {}
    assert decisions[1].labels == ()
    assert "image" in decisions[1].error
    assert decisions[0].error is None
    assert scorer.score([]) == []


def test_cut_is_counted(scorer: Scorer, exported) -> None:
    picture = make_item(["image"], 1, exported.inputs).image
    [decision] = scorer.score([Item("many", image=picture * 7)])
    assert decision.cut == 3


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 200))
def test_runs_cover_all_once_and_are_bounded(lengths: list[int], limit: int) -> None:
    lengths_S = np.array(lengths)
    order = np.argsort(lengths_S, kind="stable")
    runs = list(sessions._runs(order, lengths_S, limit))
    np.testing.assert_array_equal(np.concatenate(runs), order)
    for run in runs:
        assert len(run) == 1 or len(run) * lengths_S[run].max() <= limit
    for run, following in itertools.pairwise(runs):
        assert (len(run) + 1) * lengths_S[following[0]] > limit, "a run is not cut before it is full"


def test_runs_only_the_encoders_that_an_item_needs(exported, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    encode = embeddings.encode

    def counting(session, segments, limit):
        ran.append(next(iter(segments.inputs)))
        return encode(session, segments, limit)

    monkeypatch.setattr(embeddings, "encode", counting)
    Scorer(exported.bundle).score([make_item(["text"], 1, exported.inputs), make_item([], 2, exported.inputs)])
    assert ran == ["input_ids"]


def test_serving_needs_no_torch(exported, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
for name in ("torch", "pydantic", "ruamel", "pyarrow", "lance", "onnx", "scipy", "numba", "rich", "typer", "cryptography"):
    sys.modules[name] = None  # importing it fails
from vigil_data.items import Item
from vigil_serving.runtime import Scorer
[decision] = Scorer(Path(sys.argv[1]), threads=1).score([Item("1", text=("call now",))])
assert len(decision.probabilities) == 3
loaded = {"transformers", "timm", "torchaudio", "torchvision", "lightning"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(exported.bundle)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
