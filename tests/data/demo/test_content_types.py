"""Content types of the demonstration: rules of the labels, balance, independence of everything else, and splits without leaks."""

import io
from collections import Counter
from itertools import pairwise
from random import Random
from typing import get_args

import numpy as np
import pytest
import soundfile
from scipy.stats import chi2_contingency, mannwhitneyu

from vigil.cli.data import show as command
from vigil_data.dataset.dataset import Dataset
from vigil_data.demo import DESIGNS, ITEMS, content_types, generate, speech
from vigil_data.demo.content_types import ContentType, plan_items, render_item, thread_labels
from vigil_data.demo.objects import OBJECTS
from vigil_data.demo.scenarios import SUBJECTS, Part
from vigil_data.demo.sentences import REPLIES, SPLITS, TITLES, expand, sentences, split_of
from vigil_data.demo.speech import RATE, record_episode

TYPES = tuple(DESIGNS)


def tone(sentence: str) -> speech.Sound:
    """A sound of a fifth of a second in place of a synthesized sentence, a different one for each."""
    pitch = 200 + sum(map(ord, sentence)) % 400
    return np.sin(np.arange(RATE // 5) * 2 * np.pi * pitch / RATE).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A dataset of each content type; only its speech is replaced."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vigil_data.demo.synthesise", lambda wanted, _: {sentence: tone(sentence) for sentence in wanted})
        for content_type in TYPES:
            generate(folder / content_type, seed=3, items=80 if content_type == "episode" else 200, content_type=content_type)
    return {content_type: Dataset(folder / content_type) for content_type in TYPES}


def test_content_types_are_those_of_the_command():
    assert get_args(command.ContentType) == get_args(ContentType) == tuple(ITEMS)


def test_sentences_of_titles_and_replies_have_one_meaning_and_cover_every_split():
    for templates in (TITLES, REPLIES):
        everything = [s for written in templates.values() for template in written for s in expand(template)]
        assert max(Counter(everything).values()) == 1
        assert not [s for s in everything if " ," in s or "  " in s or s != s.strip()]
        for split in SPLITS:
            assert all(sentences(templates, split).values())


@pytest.mark.parametrize(
    ("context", "body", "labels"),
    [
        (["gambling"], ["agree"], {"endorsement"}),
        (["gambling"], ["disagree"], set()),
        (["gambling"], ["chatter"], set()),
        (["gambling_negated"], ["agree"], set()),
        ([], ["agree"], set()),
        ([], ["tobacco"], {"endorsement"}),
        (["weapons"], ["tobacco_reported"], set()),
        (["weapons"], ["call"], {"promotion"}),
        (["weapons_homonym"], ["call"], set()),
        (["call"], ["chatter"], set()),
    ],
)
def test_thread_labels_take_the_parent_as_context_and_not_as_content(context, body, labels):
    found = thread_labels({"context": [Part(kind) for kind in context], "body": [Part(kind) for kind in body]})
    assert {label for label, is_given in found.items() if is_given} == labels


@pytest.mark.parametrize("content_type", TYPES)
def test_scenarios_name_content_that_their_places_can_have(content_type):
    design = DESIGNS[content_type]
    for role, place in design.places.items():
        kinds = set(place.filler) | {scenario.needs[role] for scenario in design.scenarios if role in scenario.needs}
        named = {kind.replace("*", subject) for kind in kinds - {"filler"} for subject in SUBJECTS}
        assert {kind.removesuffix("_forbidden") for kind in named} <= set(place.templates or OBJECTS)


@pytest.mark.parametrize("content_type", TYPES)
def test_plan_items_gives_items_what_their_scenario_needs_and_no_label_by_chance(content_type):
    design = DESIGNS[content_type]
    benign = (
        "ordinary",
        "negated",
        "reported",
        "homonym",
        "lookalike",
        "forbidden",
        "account_without",
        "request_without",
        "call_",
    )
    for split in SPLITS:
        for plan in plan_items(content_type, split, 300, Random(f"{content_type} {split}")):
            needed = [scenario.needs for scenario in design.scenarios if scenario.functionality == plan.functionality]
            kinds = {role: {part.kind for part in parts} for role, parts in plan.parts.items()}
            assert any(
                all(
                    kinds[role] & {kind.replace("*", subject) for subject in SUBJECTS}
                    for role, kind in needs.items()
                    if kind != "filler"
                )
                for needs in needed
                if set(needs) <= set(kinds)
            )
            labels = {label for label, is_given in design.labels_of(plan.parts).items() if is_given}
            if plan.functionality.startswith(benign):
                assert not labels
            elif plan.functionality.startswith(("stated", "pictured", "scam")):
                assert len(labels) == 1
            assert all(split_of(part.source) == split for parts in plan.parts.values() for part in parts if part.source)


def test_thread_has_a_known_share_whose_label_only_the_parent_decides():
    plans = plan_items("thread", "train", 4000, Random(0))
    decided = [plan for plan in plans if plan.functionality.endswith("_decided_by_parent")]
    assert len(decided) / len(plans) == pytest.approx(0.5, abs=0.03)
    for label in ("endorsement", "promotion"):
        own = [plan for plan in decided if plan.functionality.startswith(label)]
        positive = np.array([thread_labels(plan.parts)[label] for plan in own])
        assert positive.mean() == pytest.approx(0.5, abs=0.05)
        assert all(not is_given for plan in own for other, is_given in thread_labels(plan.parts).items() if other != label)
        # A reply says nothing about its label: those to subjects begin like those to harmless messages.
        starts = np.array([plan.parts["body"][0].source.split()[0] for plan in own])
        table = [[((starts == word) & (positive == is_given)).sum() for word in np.unique(starts)] for is_given in (True, False)]
        assert chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("content_type", TYPES)
def test_generate_has_all_labels_in_training_and_the_roles_of_its_places(made, content_type):
    dataset = made[content_type]
    items = dataset.take(np.arange(len(dataset)))
    targets = np.array([[item.targets.get(label, np.nan) for label in dataset.labels] for item in items])
    train = np.array([item.columns["split"] == "train" for item in items])
    assert (np.nansum(targets[train] == 1, axis=0) > 0).all()
    assert 0 < np.isnan(targets[train]).mean() < 0.06
    assert not np.isnan(targets[~train]).any()
    found = {(modality, role) for item in items for modality, roles in item.roles.items() for role in roles}
    places = {(place.modality, role) for role, place in DESIGNS[content_type].places.items()}
    assert found == places | ({("text", "transcript")} if content_type == "episode" else set())
    assert {item.columns["content_type"] for item in items} == {content_type}


@pytest.mark.parametrize("content_type", TYPES)
def test_generate_shares_no_text_image_or_sound_between_splits(made, content_type):
    dataset = made[content_type]
    items = dataset.take(np.arange(len(dataset)))
    seen: dict[object, set[str]] = {}
    for item in items:
        for content in (*item.text, *item.image, *item.audio):
            seen.setdefault(content.lower() if isinstance(content, str) else content, set()).add(item.columns["split"])
    assert len(seen) > 200
    assert {len(splits) for splits in seen.values()} == {1}


def test_generate_is_deterministic_for_a_seed(made, tmp_path):
    generate(tmp_path / "again", seed=3, items=200, content_type="cover")
    again, rows = Dataset(tmp_path / "again"), np.arange(200)
    assert made["cover"].take(rows) == again.take(rows)
    generate(tmp_path / "other", seed=4, items=200, content_type="cover")
    assert made["cover"].take(rows) != Dataset(tmp_path / "other").take(rows)


def test_episode_has_a_timed_transcript_of_what_is_said(made):
    dataset = made["episode"]
    items = dataset.take(np.arange(len(dataset)))
    complete = partial = absent = 0
    for item in items:
        samples, rate = soundfile.read(io.BytesIO(item.audio[0]))
        lines = [
            (text, time)
            for n, (text, time) in enumerate(zip(item.text, item.times or [None] * len(item.text), strict=True))
            if item.role("text", n) == "transcript"
        ]
        assert all(item.time("text", n) is None for n, _ in enumerate(item.text) if item.role("text", n) != "transcript")
        absent += not lines
        ends = 0.0
        for text, (start, end) in lines:
            assert ends <= start < end <= len(samples) / rate
            ends = end
            # The tone of this sentence, at this episode's pace, is what is heard in its time.
            heard = samples[round(start * rate) : round(end * rate)]
            peak = np.argmax(np.abs(np.fft.rfft(heard * np.hanning(len(heard))))) * rate / len(heard)
            assert 0.88 < (200 + sum(map(ord, text)) % 400) / peak / ((len(heard) / rate) / 0.2) < 1.12
        gaps = sum(b[1][0] - a[1][1] > 1.1 for a, b in pairwise(lines))
        partial += bool(gaps)
        complete += bool(lines) and not gaps
    assert absent / len(items) == pytest.approx(content_types.UNTRANSCRIBED["episode"], abs=0.14)
    assert partial > 5
    assert complete > 5


def test_record_episode_keeps_the_order_and_the_range():
    samples, rate = soundfile.read(io.BytesIO(record_episode([tone("a"), tone("b")], Random(0))[0]))
    assert rate == RATE
    assert 0.25 < np.abs(samples).max() <= 0.96


@pytest.mark.parametrize("content_type", TYPES)
def test_size_of_an_item_is_independent_of_its_labels(content_type):
    design = DESIGNS[content_type]
    plans = plan_items(content_type, "train", 3000, Random(1))
    for role in design.places:
        counts = np.array([len(plan.parts.get(role, ())) for plan in plans])
        labels = np.array([list(design.labels_of(plan.parts).values()) for plan in plans])
        for column in labels[counts > 0].T:
            assert mannwhitneyu(counts[counts > 0][column], counts[counts > 0][~column]).pvalue > 1e-3


def test_voice_and_background_are_independent_of_the_labels(monkeypatch):
    # With one sound for all sentences, whatever differs between recordings is voice and background.
    plans = plan_items("episode", "train", 100, Random(2))
    sounds = dict.fromkeys({sentence for plan in plans for sentence in content_types.spoken_sentences(plan)}, tone("any"))
    levels, labels = [], []
    monkeypatch.setattr(content_types, "draw_part", lambda *_: b"")
    for number, plan in enumerate(plans):
        item = render_item(plan, "x", "train", sounds, Random(f"voice {number}"))
        samples, _ = soundfile.read(io.BytesIO(item.audio[0]))
        levels.append([np.abs(samples).max(), np.abs(np.diff(samples)).mean(), np.abs(samples[-1000:]).mean()])
        labels.append(any(DESIGNS["episode"].labels_of(plan.parts).values()))
    for feature in np.array(levels).T:
        assert mannwhitneyu(feature[labels], feature[~np.array(labels)]).pvalue > 1e-3
