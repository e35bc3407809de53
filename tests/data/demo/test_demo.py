"""The demonstration's dataset: labels follow the policy, splits share no source, and the same seed makes the same bytes."""

import io
from collections import Counter
from random import Random

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vigil_data import demo
from vigil_data.dataset.dataset import Dataset
from vigil_data.demo import generate
from vigil_data.demo.objects import OBJECTS
from vigil_data.demo.pictures import STYLES, draw
from vigil_data.demo.scenarios import CASES, FILLER, LABELS, SUBJECTS, Part, compose, labels_of, styles_of
from vigil_data.demo.sentences import SPEECH, SPLITS, TEXT, expand, sentences, split_of
from vigil_data.demo.speech import RATE, record
from vigil_data.errors import UserError
from vigil_data.items import MODALITIES


def test_expand_makes_every_combination():
    assert expand("{a|b} and {c|d}.") == ["a and c.", "a and d.", "b and c.", "b and d."]
    assert expand("as it is") == ["as it is"]


@pytest.mark.parametrize("templates", [TEXT, SPEECH], ids=["text", "speech"])
def test_sentences_cover_every_split_without_overlap(templates):
    pools = {split: sentences(templates, split) for split in SPLITS}
    for kind, written in templates.items():
        everything = [sentence for template in written for sentence in expand(template)]
        assert len(set(everything)) == len(everything), kind
        found = [sentence for split in SPLITS for pool in pools[split][kind] for sentence in pool]
        assert sorted(found) == sorted(everything)
        assert all(pools[split][kind] for split in SPLITS), kind


def test_sentences_written_and_spoken_are_in_one_split():
    for split in SPLITS:
        for templates in (TEXT, SPEECH):
            for pools in sentences(templates, split).values():
                assert all(split_of(sentence) == split for pool in pools for sentence in pool)


def test_sentences_have_one_meaning():
    for templates in (TEXT, SPEECH):
        counts = Counter(s for written in templates.values() for template in written for s in expand(template))
        assert max(counts.values()) == 1


def test_styles_do_not_overlap_between_splits():
    everything = [number for split in SPLITS for number in styles_of(split)]
    assert sorted(everything) == list(range(STYLES))


def test_render_supports_every_kind():
    known = {"text": set(TEXT), "audio": set(SPEECH), "image": set(OBJECTS)}
    named = [(m, kind) for case in CASES for m, kind in case.needs.items()] + [(m, kind) for m in FILLER for kind in FILLER[m]]
    for modality, pattern in named:
        for subject in SUBJECTS:
            assert pattern.replace("*", subject).removesuffix("_forbidden") in known[modality]


@pytest.mark.parametrize(
    ("parts", "labels"),
    [
        ({}, set()),
        ({"text": [Part("tobacco")]}, {"tobacco"}),
        ({"text": [Part("tobacco_negated")], "image": [Part("gambling_lookalike"), Part("weapons_forbidden")]}, set()),
        ({"text": [Part("tobacco_reported")], "image": [Part("tobacco")]}, {"tobacco"}),
        ({"audio": [Part("scam")]}, {"scam"}),
        ({"text": [Part("request")], "image": [Part("account")]}, {"scam"}),
        ({"text": [Part("request")], "image": [Part("plain")]}, set()),
        ({"text": [Part("chatter")], "image": [Part("account")]}, set()),
        ({"text": [Part("call")], "image": [Part("weapons")]}, {"weapons", "promotion"}),
        ({"text": [Part("call")], "audio": [Part("gambling")]}, {"gambling", "promotion"}),
        ({"audio": [Part("call")], "image": [Part("plain")]}, set()),
        ({"text": [Part("call")], "image": [Part("account")]}, set()),
        ({"text": [Part("call"), Part("scam")]}, {"scam"}),
    ],
)
def test_labels_of_follows_the_policy(parts, labels):
    found = labels_of(parts)
    assert tuple(found) == LABELS
    assert {label for label, given_ in found.items() if given_} == labels


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), split=st.sampled_from(list(SPLITS)))
def test_compose_gives_items_what_their_case_needs(seed, split):
    cases = {case.functionality: case for case in CASES}
    for plan in compose(split, 60, Random(seed)):
        needs = cases[plan.functionality].needs
        assert set(needs) <= set(plan.parts) <= set(MODALITIES)
        labels = {label for label, given_ in labels_of(plan.parts).items() if given_}
        kinds = {modality: [part.kind for part in parts] for modality, parts in plan.parts.items()}
        for modality, pattern in needs.items():
            assert any(pattern.replace("*", subject) in kinds[modality] for subject in SUBJECTS)
        assert ("promotion" in labels) == plan.functionality.startswith("promotion_by")
        assert ("scam" in labels) == (
            plan.functionality.startswith("scam_") and "warned" not in plan.functionality and "reported" not in plan.functionality
        )
        assert bool(labels & set(SUBJECTS)) == ("*" in needs.values())
        for modality in ("text", "audio"):
            assert all(split_of(part.source) == split for part in plan.parts.get(modality, ()))


@pytest.mark.parametrize("kind", OBJECTS)
def test_draw_supports_every_object_and_style(kind):
    for number in range(STYLES):
        image = Image.open(io.BytesIO(draw(kind, number, Random(number), forbidden=number % 2 == 0)))
        image.load()
        assert image.mode == "RGB"
        assert np.asarray(image).std() > 5


def test_record_keeps_the_words_and_the_range():
    tone = np.sin(np.arange(RATE) * 0.1).astype(np.float32)
    clips = [soundfile.read(io.BytesIO(record(tone, Random(seed)))) for seed in range(6)]
    for samples, rate in clips:
        assert rate == RATE
        assert 0.8 * RATE < len(samples) < 1.6 * RATE
        assert 0.25 < np.abs(samples).max() <= 0.96
    assert len({len(samples) for samples, _ in clips}) > 1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    told = []
    for name in ("one", "two"):
        generate(folder / name, seed=7, items=60, progress=lambda stage, done, total: told.append((stage, done, total)))
    return folder, told


def test_generate_in_processes_makes_the_items_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "WINDOW", 100)
    rows = np.arange(150)
    made = []
    for processes in (2, 1):
        monkeypatch.setattr(demo, "PROCESSES", processes)
        generate(tmp_path / f"{processes}", seed=5, items=150)
        made.append(Dataset(tmp_path / f"{processes}").take(rows))
    assert made[0] == made[1]


def test_generate_is_deterministic_for_a_seed(made):
    folder, _ = made
    one, two = (Dataset(folder / name) for name in ("one", "two"))
    rows = np.arange(len(one))
    assert one.take(rows) == two.take(rows)


def test_generate_has_all_splits_labels_and_modalities(made):
    folder, told = made
    dataset = Dataset(folder / "one")
    assert dataset.splits() == {"train": 42, "validation": 6, "test": 12}
    assert set(dataset.labels) == set(LABELS)
    assert "functionality" in dataset.columns
    assert (dataset.facts().sum(0) > 0).all()
    assert dataset.quarantine().num_rows == 0
    assert ("drawing and recording", 60, 60) in told


def test_generate_differs_between_seeds():
    assert compose("train", 50, Random("0 train")) != compose("train", 50, Random("1 train"))


def test_generate_refuses_an_existing_dataset(made):
    folder, _ = made
    with pytest.raises(UserError, match="exists already"):
        generate(folder / "one", items=10)
