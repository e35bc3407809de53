"""Runtime: decisions depend only on the item, and need no torch."""

import io
import itertools
import json
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import Span, pack
from vigil_serving.parity.cases import make_item
from vigil_serving.runtime import embedding_cache, onnx_sessions
from vigil_serving.runtime import scorer as scorer_module
from vigil_serving.runtime.embedding_cache import EmbeddingCache, EncodedMedium, MediaEncoder
from vigil_serving.runtime.run_limits import split_runs
from vigil_serving.runtime.scorer import Scorer, item_from_mapping

PATTERNS = [["text", "image", "audio"], ["text"], [], ["audio"], ["image"], ["text", "audio"]]


@pytest.fixture(scope="module")
def scorer(exported) -> Scorer:
    return Scorer(exported.bundle, threads=1)


@pytest.fixture(scope="module")
def items(exported) -> list[Item]:
    return [make_item(PATTERNS[n % 6], n, exported.inputs) for n in range(30)]


def test_scorer_decides_like_the_torch_model(scorer: Scorer, items: list[Item], exported) -> None:
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


def test_scorer_decisions_do_not_depend_on_batching(
    scorer: Scorer, items: list[Item], exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = scorer.score(items)
    monkeypatch.setattr(scorer_module, "MAX_FUSION_TOKENS", 5)
    monkeypatch.setattr(scorer_module, "MAX_ENCODE_ITEMS", 7)
    for module in (embedding_cache, onnx_sessions):
        monkeypatch.setattr(module, "RUN_LIMITS", {"text": 30, "image": 1, "audio": 2})
    for a, b in zip(together, Scorer(exported.bundle, cache_bytes=0).score(items), strict=True):
        assert (a.id, a.labels, a.cut) == (b.id, b.labels, b.cut)
        np.testing.assert_allclose(list(a.probabilities.values()), list(b.probabilities.values()), atol=1e-5)


def test_scorer_keeps_the_order_of_undecodable_items(scorer: Scorer, items: list[Item]) -> None:
    mixed = [items[0], Item("broken", image=(b"no picture",)), items[1]]
    decisions = scorer.score(mixed)
    assert [decision.id for decision in decisions] == [items[0].id, "broken", items[1].id]
    assert decisions[1].probabilities == {}
    assert decisions[1].labels == ()
    assert "image" in decisions[1].error
    assert decisions[0].error is None
    assert scorer.score([]) == []


def test_scorer_counts_cut_segments(scorer: Scorer, exported) -> None:
    picture = make_item(["image"], 1, exported.inputs).image
    [decision] = scorer.score([Item("many", image=picture * 7)])
    assert decision.cut == 3


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 200))
def test_encoder_runs_are_bounded_and_cover_every_segment_once(lengths: list[int], limit: int) -> None:
    lengths_S = np.array(lengths)
    order = np.argsort(lengths_S, kind="stable")
    runs = list(split_runs(order, lengths_S, limit))
    np.testing.assert_array_equal(np.concatenate(runs), order)
    for run in runs:
        assert len(run) == 1 or len(run) * lengths_S[run].max() <= limit
    for run, following in itertools.pairwise(runs):
        assert (len(run) + 1) * lengths_S[following[0]] > limit, "a run ends only when it is full"


def test_scorer_runs_only_the_encoders_that_an_item_needs(exported, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    encode = onnx_sessions.encode

    def counting(session, segments, limit):
        ran.append(next(iter(segments.inputs)))
        return encode(session, segments, limit)

    monkeypatch.setattr(onnx_sessions, "encode", counting)
    Scorer(exported.bundle).score([make_item(["text"], 1, exported.inputs), make_item([], 2, exported.inputs)])
    assert ran == ["input_ids"]


def test_scorer_accepts_str_and_path_like(exported, items: list[Item]) -> None:
    expected = Scorer(exported.bundle, threads=1).score(items[:3])
    assert Scorer(str(exported.bundle), threads=1).score(items[:3]) == expected
    with pytest.raises(UserError, match="not a bundle"):
        Scorer("nowhere")


def test_runtime_exports_are_lazy() -> None:
    program = "import sys, vigil_serving.runtime as r; print('onnxruntime' in sys.modules, r.Scorer.__name__, *dir(r))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    names = ["Decision", "Scorer", "SegmentEvidence", "TruncatedSegment", "item_from_mapping"]
    assert done.stdout.split() == ["False", "Scorer", *names]


def test_scorer_needs_no_torch(exported, tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
for name in ("torch", "pydantic", "ruamel", "pyarrow", "lance", "onnx", "scipy", "numba", "rich", "typer", "cryptography"):
    sys.modules[name] = None  # importing it fails
from vigil_data.items import Item
from vigil_serving.runtime.run_limits import split_runs
from vigil_serving.runtime.scorer import Scorer
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


def test_scorer_accepts_mappings(scorer: Scorer, items: list[Item]) -> None:
    as_mappings = [
        {"id": i.id, "text": list(i.text), "image": list(i.image), "audio": list(i.audio), "market": "de"} for i in items
    ]
    assert scorer.score(as_mappings) == scorer.score(items)
    assert item_from_mapping(as_mappings[0]).columns == {"market": "de"}
    assert scorer.score([{"id": "nothing"}])[0].presence == "none"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "item: must be a mapping with an id and lists under text, image and audio, not list"),
        ({"text": ["a"]}, "item.id: must be text"),
        ({"id": 1}, "item.id: must be text"),
        ({"id": "1", "text": "a"}, "item.text: must be a list of text or objects"),
        ({"id": "1", "text": [b"a"]}, "item.text: must be a list of text or objects"),
        ({"id": "1", "image": ["a"]}, "item.image: must be a list of encoded bytes or objects"),
        (
            {"id": "1", "image": [b"a", {"data": b"a", "role": "covr"}]},
            "item.image[1]: role must be one of body, title, context, transcript, ocr, cover",
        ),
        ({"id": "1", "audio": b"a"}, "item.audio: must be a list of encoded bytes or objects"),
    ],
)
def test_item_from_mapping_refuses_other_types(scorer: Scorer, value: object, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        item_from_mapping(value)
    assert str(caught.value) == problem
    with pytest.raises(UserError, match="item 1"):
        scorer.score([{"id": "sound"}, value])


def test_decision_to_dict_is_json(scorer: Scorer, items: list[Item]) -> None:
    for decision in scorer.score([*items, Item("broken", audio=(b"",))]):
        read = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
        assert read["probabilities"] == decision.probabilities
        assert [e["span"]["start"] for e in read["evidence"]] == [e.span.start for e in decision.evidence]
        assert read["error"] == decision.error


def test_embedding_cache_encodes_repeated_media_once(exported, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    encode = onnx_sessions.encode
    monkeypatch.setattr(
        onnx_sessions, "encode", lambda session, s, limit: (encoded.append(len(s.item)), encode(session, s, limit))[1]
    )
    item = make_item(["text", "image", "audio"], 13, exported.inputs)
    scorer = Scorer(exported.bundle)
    first = scorer.score([item, replace(item, id="again")])
    assert first[1].probabilities == pytest.approx(first[0].probabilities, abs=1e-6)
    once = sum(encoded)
    [later] = scorer.score([item])
    assert (later.labels, later.cut) == (first[0].labels, first[0].cut)
    assert later.probabilities == pytest.approx(first[0].probabilities, abs=1e-6)
    assert sum(encoded) == once
    assert scorer.cache.hits == sum(len(getattr(item, m)) for m in ("text", "image", "audio"))
    without_cache = Scorer(exported.bundle, cache_bytes=0)
    without_cache.score([item])
    without_cache.score([item])
    assert sum(encoded) == 3 * once
    assert without_cache.cache.hits == 0


def test_scorer_gives_evidence_for_each_occurrence_of_a_medium(exported) -> None:
    a, b = make_item(["image"], 0, exported.inputs).image[0], make_item(["image"], 4, exported.inputs).image[0]
    scorer, all_labels = Scorer(exported.bundle), dict.fromkeys(exported.thresholds, 0.0)
    scorer = Scorer(replace(scorer.bundle, thresholds=all_labels))
    [decision] = scorer.score([Item("1", image=(a, b, a))])
    for label in all_labels:
        weights = {e.span.index: e.weight for e in decision.evidence if e.label == label}
        assert set(weights) == {0, 1, 2}
        assert weights[0] == pytest.approx(weights[2], abs=1e-6)


def test_scorer_encodes_a_medium_once_for_all_its_roles_and_times(exported) -> None:
    items = [
        Item("plain", ("call now",)),
        Item("context", ("call now",), roles={"text": ("context",)}),
        Item("timed", ("call now",), times=((12.5, 17.0),)),
    ]
    scorer = Scorer(exported.bundle)
    scorer = Scorer(replace(scorer.bundle, thresholds=dict.fromkeys(exported.thresholds, 0.0)))
    decisions = [scorer.score([item])[0] for item in items]
    assert (scorer.cache.misses, scorer.cache.hits) == (1, 2)
    packed = pack([Decoder(exported.inputs, ()).decode(item) for item in items])
    with torch.no_grad():
        expected_NL = torch.sigmoid(exported.model(collate(packed)).logits_NL).numpy()
    found_NL = np.array([[decision.probabilities[label] for label in exported.thresholds] for decision in decisions])
    np.testing.assert_allclose(found_NL, expected_NL, atol=1e-5)
    assert len({tuple(row) for row in found_NL.round(3).tolist()}) == 3
    spans = [decision.evidence[0].span for decision in decisions]
    assert [(span.role, span.time) for span in spans] == [("body", None), ("context", None), ("body", (12.5, 17.0))]


def test_embedding_cache_distinguishes_limits_that_cut(exported) -> None:
    """A long text has fewer passages if another text came before it."""
    long = " ".join(f"word{n}" for n in range(60))
    scorer = Scorer(exported.bundle)
    alone, after = [Item("alone", text=(long,))], [Item("after", text=(long[::-1], long))]
    expected = Scorer(exported.bundle, cache_bytes=0).score([*after, *alone])
    assert expected[0].cut != expected[1].cut
    for items in (after, alone, after, alone):
        [found] = scorer.score(items)
        wanted = next(decision for decision in expected if decision.id == found.id)
        assert found.cut == wanted.cut
        np.testing.assert_allclose(list(found.probabilities.values()), list(wanted.probabilities.values()), atol=1e-5)


@given(sizes=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40)), max_size=60), most=st.integers(0, 60_000))
def test_embedding_cache_is_bounded_and_evicts_the_least_recently_used(sizes: list[tuple[int, int]], most: int) -> None:
    cache, held = EmbeddingCache(most), OrderedDict()
    for name, tokens in sizes:
        key = ("text", bytes([name]))
        medium = EncodedMedium(99, [Span(0)], [np.zeros((tokens, 16), np.float32)])
        size = 800 + tokens * 64
        found = cache.get(key, 99)
        assert (found is not None) == (key in held)
        if found is not None:
            held.move_to_end(key)
            continue
        cache.put(key, medium)
        if size <= most:
            held[key] = size
        while sum(held.values()) > most:
            held.popitem(last=False)
    assert cache.hits + cache.misses == len(sizes)


def test_scorer_is_thread_safe(exported, items: list[Item]) -> None:
    expected = {decision.id: decision for decision in Scorer(exported.bundle, threads=1, cache_bytes=0).score(items)}
    scorer = Scorer(exported.bundle, threads=1, cache_bytes=20_000)
    order = np.random.default_rng(0)
    batches = [[items[i] for i in order.permutation(len(items))[:7]] for _ in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for batch, decisions in zip(batches, pool.map(scorer.score, batches), strict=True):
            assert [decision.id for decision in decisions] == [item.id for item in batch]
            for decision in decisions:
                wanted = expected[decision.id]
                assert (decision.labels, decision.cut, decision.error) == (wanted.labels, wanted.cut, wanted.error)
                np.testing.assert_allclose(list(decision.probabilities.values()), list(wanted.probabilities.values()), atol=1e-5)


def test_media_encoder_streams_an_hour_of_audio(exported) -> None:
    """An hour at the model's rate is 115 MB of samples; memory has a few windows in addition to the encoded bytes."""
    facts = Scorer(exported.bundle).bundle
    bundle = replace(facts, inputs=replace(facts.inputs, audio=replace(facts.inputs.audio, window=0.25, max_windows=20_000)))
    scorer = Scorer(bundle, threads=1, cache_bytes=0)
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, 1, format="FLAC", subtype="PCM_16") as sound:
        for minute in range(60):
            tone_T = 0.3 * np.sin(np.arange(60 * 8000) * 0.01 * (1 + minute % 7))
            sound.write(tone_T)
    media_encoder = MediaEncoder(scorer.decoder, scorer.sessions, scorer.cache)
    tracemalloc.start()
    encoded = media_encoder.add(Item("hour", audio=(buffer.getvalue(),)))
    media_encoder.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    windows = len(encoded.tokens("audio"))
    assert windows == 60 * 60 * 4
    tokens = sum(token.nbytes + 300 for token in encoded.tokens("audio"))
    assert peak < 20_000_000 + 4 * tokens, f"{peak / 1e6:.0f} MB at the peak, with {tokens / 1e6:.0f} MB of embeddings"


def test_scorer_leaves_out_texts_of_roles_that_the_model_does_not_read(exported) -> None:
    facts = Scorer(exported.bundle).bundle
    text = replace(facts.inputs.text, roles=("body", "title"))
    scorer = Scorer(replace(facts, inputs=replace(facts.inputs, text=text)), threads=1)
    reply = Item("x", ("who wants some", "me"), roles={"text": ("context", "body")})
    alone, ignored = Item("x", ("me",)), Item("x", ("who wants some",), roles={"text": ("context",)})
    decisions = scorer.score([reply, alone, ignored, Item("x")])
    np.testing.assert_allclose(list(decisions[0].probabilities.values()), list(decisions[1].probabilities.values()), atol=1e-5)
    np.testing.assert_allclose(list(decisions[2].probabilities.values()), list(decisions[3].probabilities.values()), atol=1e-5)
    assert decisions[2].presence == "none"
    media_encoder = MediaEncoder(scorer.decoder, scorer.sessions, scorer.cache)
    encoded = media_encoder.add(reply)
    media_encoder.finish()
    assert [span.index for span in encoded.spans("text")] == [1]
