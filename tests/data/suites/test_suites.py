"""Suites: templates fill as written, perturbations do what they say, pairs tell the truth, one seed makes the same items."""

import io
import itertools
import json
import sys
from collections import Counter
from random import Random

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from vigil_data.dataset.dataset import Dataset, write
from vigil_data.errors import UserError
from vigil_data.media_files import MediaFolder
from vigil_data.suites import media
from vigil_data.suites.build import make, unusable_files
from vigil_data.suites.planned_items import plan_items
from vigil_data.suites.templates import Fillings, Word, fill, lexicon_of, parse, plain
from vigil_data.suites.validation import ValidatedSuite

BASE = {
    "name": "clubs",
    "labels": {"tobacco": "", "gambling": ""},
    "lexicons": {"goods": ["cigarettes", "cigars", "snuff"], "place": ["here", "there"]},
    "identities": {"fans": {"rovers": ["Rovers fans", "the Rovers crowd"], "city": ["City fans"]}},
}


def suite_of(*, base=None, **functionalities):
    """A suite as it would be read from a file: strictly, from JSON."""
    values = {**BASE, **(base or {}), "functionalities": functionalities}
    return ValidatedSuite.model_validate_json(json.dumps(values), strict=True)


def mistakes_of(**functionalities):
    with pytest.raises(ValidationError) as caught:
        suite_of(**functionalities)
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


text = st.text(st.characters(codec="utf-8", exclude_characters="{}"), max_size=12)
word = st.text(st.sampled_from("abcdexyz'é \u00df"), min_size=1, max_size=8).filter(str.strip)


# Templates


@given(st.lists(st.one_of(text, st.sampled_from(["{a}", "{b}", "{b2}", "{{", "}}"])), max_size=8))
def test_template_fill_equals_a_substitution_by_hand(parts):
    template = "".join(parts)
    chosen = {"a": Word("one"), "b": Word("two"), "b2": Word("three")}
    by_hand = "".join(
        {"{{": "{", "}}": "}"}.get(p, chosen[p[1:-1]].text if p[1:-1] in chosen and p[0] == "{" else p) for p in parts
    )
    filled = fill(template, chosen)
    assert plain(filled) == by_hand
    assert [f.placeholder for f in filled if f.placeholder] == [p[1:-1] for p in parts if p in ("{a}", "{b}", "{b2}")]
    assert template == "".join(
        f"{{{f.placeholder}}}" if f.placeholder else f.text.replace("{", "{{").replace("}", "}}") for f in parse(template)
    )


@pytest.mark.parametrize("template", ["a {", "a } b", "{a b}", "{}", "{A}", "{{a}", "{a}}", "{1a}"])
def test_template_refuses_a_brace_that_is_no_placeholder(template):
    with pytest.raises(ValueError, match=r"brace|lexicon"):
        parse(template)


def test_template_numbered_placeholder_is_another_word_of_its_lexicon():
    assert lexicon_of("goods", {"goods": 0}) == "goods"
    assert lexicon_of("goods2", {"goods": 0}) == "goods"
    assert lexicon_of("goods2", {"goods": 0, "goods2": 0}) == "goods2"
    assert lexicon_of("good", {"goods": 0}) is None


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["a", "a2", "a3", "b", "b2"]), unique=True),
    st.lists(word, min_size=1, max_size=4, unique=True),
    st.lists(word, min_size=1, max_size=3, unique=True),
)
def test_template_fillings_are_all_combinations_of_different_words(names, first, second):
    words = {"a": [Word(w) for w in first], "b": [Word(w) for w in second]}
    fillings = Fillings.of([" ".join(f"{{{name}}}" for name in names)], words)
    by_hand = [
        chosen
        for chosen in itertools.product(*(words[name[0]] for name in names))
        if all(
            len({c for c, n in zip(chosen, names, strict=True) if n[0] == of}) == sum(n[0] == of for n in names) for of in "ab"
        )
    ]
    found = [tuple(filling[name] for name in names) for filling in fillings]
    assert len(fillings) == len(found) == len(by_hand)
    assert sorted(found) == sorted(by_hand)
    with pytest.raises(IndexError):
        fillings[len(by_hand)]


# Items


STATED = {
    "expect": {"tobacco": 1, "gambling": None},
    "templates": ["{fans} smoke {goods} {place}.", "I smoke {goods} and {goods2}."],
}


def test_functionality_makes_every_filling_once():
    made = plan_items(suite_of(stated=STATED)).items
    assert len(made) == 3 * 3 * 2 + 3 * 2
    assert len({item.text for item in made}) == len(made)
    assert len({item.id for item in made}) == len(made)
    for item in made:
        assert item.expected == {"tobacco": 1.0, "gambling": None}
        assert item.identity == ("rovers" if "Rovers" in item.text[0] else "city" if "City" in item.text[0] else None)
    assert {item.template for item in made} == {"stated-1", "stated-2"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20))
def test_functionality_sample_is_a_subset_and_depends_only_on_the_seed(seed, sample):
    everything = {item.id: item for item in plan_items(suite_of(base={"seed": seed}, stated=STATED)).items}
    made = plan_items(suite_of(base={"seed": seed}, stated={**STATED, "sample": sample})).items
    assert len(made) == min(18, sample) + min(6, sample)
    assert all(everything[item.id] == item for item in made)
    assert made == plan_items(suite_of(base={"seed": seed}, stated={**STATED, "sample": sample})).items


PERTURBATIONS = [
    {"kind": "typos"},
    {"kind": "typos", "name": "two_typos", "words": 2, "sample": 5},
    {"kind": "leetspeak", "within": ["goods"]},
    {"kind": "spacing"},
    {"kind": "casing"},
    {"kind": "stretching"},
    {"kind": "homoglyphs"},
    {"kind": "emoji", "words": {"cigars": "\U0001f6ac"}},
    {"kind": "swap", "lexicon": "fans"},
    {
        "kind": "replace",
        "name": "negated",
        "words": {"smoke": "never smoke"},
        "expect": {"tobacco": 0},
        "functionality": "negation",
    },
]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.sampled_from(range(len(PERTURBATIONS))), unique=True, min_size=1))
def test_pair_states_which_labels_flip(seed, chosen):
    asked = [PERTURBATIONS[place] for place in chosen]
    made = plan_items(suite_of(base={"seed": seed}, stated={**STATED, "pairs": asked}))
    items = {item.id: item for item in made.items}
    assert len(items) == len(made.items)
    originals = [item for item in made.items if item.pair is None]
    perturbed = [item for item in made.items if item.pair is not None]
    assert len(originals) == 24
    for item in perturbed:
        original = items[item.pair]
        assert original.pair is None
        assert item.text != original.text
        assert item.template == original.template
        assert item.pair_gold == ("flips" if item.perturbation == "negated" else "stays")
        assert (item.expected["tobacco"] != original.expected["tobacco"]) == (item.pair_gold == "flips")
        assert item.expected["gambling"] is None
        assert item.functionality == ("negation" if item.perturbation == "negated" else item.perturbation)
        if item.perturbation == "swap":
            assert {item.identity, original.identity} == {"rovers", "city"}
        else:
            assert item.identity == original.identity
        if item.perturbation == "leetspeak":
            assert item.text[0].split(" ")[:2] == original.text[0].split(" ")[:2]
    counts = Counter(item.perturbation for item in perturbed)
    for place, perturbation in enumerate(asked):
        left = made.unchanged["functionalities", "stated", "pairs", place]
        assert counts[perturbation.get("name", perturbation["kind"])] + left == perturbation.get("sample", 24)


def test_exchange_changes_only_its_modality(tmp_path):
    suite = suite_of(
        scam={
            "expect": {"gambling": 1},
            "items": [{"text": ["Bet on {goods}."], "image": [{"draw": "account"}], "repeat": 3}],
            "pairs": [
                {"kind": "exchange", "name": "other", "image": [{"draw": "plain"}], "expect": {"gambling": 0}},
                {"kind": "exchange", "name": "alone", "image": [], "expect": {"gambling": None}},
                {"kind": "exchange", "name": "written", "text": [], "image": [{"text": "Bet on {goods}."}]},
            ],
        }
    )
    items = {item.id: item for item in make(suite, MediaFolder(tmp_path))}
    assert len(items) == 9 * 4
    for item in items.values():
        if (pair := item.columns["pair"]) is None:
            continue
        original = items[pair]
        kind = item.columns["perturbation"]
        assert item.targets["gambling"] == {"other": 0.0, "alone": None, "written": 1.0}[kind]
        assert item.text == (() if kind == "written" else original.text)
        assert len(item.image) == (0 if kind == "alone" else 1)
        assert item.image != original.image
    assert len({item.image for item in items.values() if item.columns["pair"] is None}) == 9  # each drawn separately


# Mistakes


def test_validated_suite_reports_every_error_with_its_position():
    found = mistakes_of(
        one={
            "expect": {"tobaco": 1, "tobacco": 1},
            "templates": ["I like {good}.", " ", "a { b", "same", "same", "{place} {place2} {place3}"],
            "pairs": [
                {"kind": "typos"},
                {"kind": "typos"},
                {"kind": "leetspeak", "within": ["place4", "nothing"]},
                {"kind": "swap", "lexicon": "fens"},
                {"kind": "swap", "name": "unused", "lexicon": "fans"},
                {"kind": "replace", "words": {}, "expect": {"tobacco": 1}},
                {"kind": "exchange"},
                {"kind": "exchange", "name": "gone", "text": []},
                {"kind": "exchange", "name": "more", "image": [{"text": "{goods}"}]},
            ],
        },
        two={"expect": {"tobacco": None}, "templates": ["ordinary"]},
        three={"expect": {"tobacco": 1}},
        four={
            "expect": {"tobacco": 1},
            "items": [
                {},
                {"image": [{"file": "a.png", "text": "x"}, {"draw": "tobaco"}, {"text": "x", "forbidden": True}]},
                {"audio": [{}], "text": ["x"], "repeat": 2},
                {"text": ["{fens}"]},
            ],
        },
        five={"expect": {"tobacco": 0}, "templates": ["same"]},
    )
    one, four = "functionalities.one", "functionalities.four"
    assert found == {
        f"{one}.expect.tobaco": "is not a label of this suite (did you mean tobacco?); its labels are tobacco, gambling",
        f"{one}.templates.0": "has the placeholder {good} without a lexicon (did you mean goods?)",
        f"{one}.templates.1": "is empty",
        f"{one}.templates.2": "has an unmatched { at character 3; write {{ for a literal brace",
        f"{one}.templates.4": "is also at functionalities.one.templates[3]; remove one",
        f"{one}.templates.5": "has 3 placeholders for different words of place, which has 2",
        f"{one}.pairs.1": "is the second perturbation named typos here; give it another name",
        f"{one}.pairs.2.within.0": "is not a placeholder of this functionality (did you mean place?)",
        f"{one}.pairs.2.within.1": "is not a placeholder of this functionality",
        f"{one}.pairs.3.lexicon": "is not a lexicon (did you mean fans?)",
        f"{one}.pairs.4.lexicon": "fills no placeholder of this functionality",
        f"{one}.pairs.5.words": "must not be empty",
        f"{one}.pairs.5.expect.tobacco": "equals the original's; name only labels that the perturbation changes",
        f"{one}.pairs.6": "exchanges nothing; name text, image or audio (an empty list removes the modality)",
        f"{one}.pairs.7": "removes all content of functionalities.one.templates[0]",
        f"{one}.pairs.8": "has the placeholder {goods}, which functionalities.one.templates[0] does not fill",
        "functionalities.two.expect": "expects nothing for any label, so there is nothing to test",
        "functionalities.three": "makes no items: write templates, or items for several segments",
        f"{four}.items.0": "is empty; add text, image or audio",
        f"{four}.items.1.image.0": "must have exactly one of file, text and draw",
        f"{four}.items.1.image.1.draw": found[f"{four}.items.1.image.1.draw"],
        f"{four}.items.1.image.2.forbidden": "needs draw",
        f"{four}.items.2.audio.0": "must have exactly one of file and say",
        f"{four}.items.2.repeat": "needs draw or say; without them, all repeated items would be equal",
        f"{four}.items.3.text.0": "has the placeholder {fens} without a lexicon (did you mean fans?)",
        "functionalities.five.templates.0": "is also at functionalities.one.templates[3]; remove one",
    }
    assert "(did you mean tobacco?); use one of tobacco," in found[f"{four}.items.1.image.1.draw"]


def test_validated_suite_refuses_empty_lexicons_and_repeated_words():
    base = {
        "lexicons": {"none": [], "goods": ["a", "a", " "], "fans": ["x"]},
        "identities": {"fans": {"rovers": [], "city": ["City", "City"]}, "nobody": {}},
    }
    with pytest.raises(ValidationError) as caught:
        suite_of(base=base, one={"expect": {"tobacco": 1}, "templates": ["x"]})
    assert {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()} == {
        "lexicons.none": "must not be empty",
        "lexicons.goods.1": "is a duplicate; remove it",
        "lexicons.goods.2": "is blank",
        "identities.fans": "is a lexicon too; a placeholder has one meaning",
        "identities.fans.city.1": "is a duplicate; remove it",
        "identities.fans.rovers": "must not be empty",
        "identities.nobody": "must not be empty",
    }


def test_validated_suite_finds_errors_that_appear_only_in_the_items():
    assert mistakes_of(
        one={
            "expect": {"tobacco": 1},
            "templates": ["I like {goods}."],
            "pairs": [{"kind": "emoji"}, {"kind": "replace", "words": {"x": "y"}}],
        },
        two={"expect": {"tobacco": 0}, "templates": ["I like cigars."]},
    ) == {
        "functionalities.two.templates.0": "makes a duplicate of an item of functionalities.one.templates[0]",
        "functionalities.one.pairs.1": "changes none of the 3 items; nothing in them matches",
    }


def test_validated_suite_refuses_too_many_items_before_making_them():
    many = {"lexicons": {"a": [f"word {n}" for n in range(400)]}}
    with pytest.raises(ValidationError, match=r"160,400 items|159,600 items, more than 100,000; set sample"):
        suite_of(base=many, one={"expect": {"tobacco": 1}, "templates": ["{a} {a2}"]})
    made = plan_items(suite_of(base=many, one={"expect": {"tobacco": 1}, "templates": ["{a} {a2}"], "sample": 100}))
    assert len(made.items) == 100


# Media


def test_picture_of_words_is_dark_on_light():
    picture = media.written("No betting in this house, thanks. " * 3, Random(0))
    assert picture == media.written("No betting in this house, thanks. " * 3, Random(0))
    image = Image.open(io.BytesIO(picture))
    grey = np.asarray(image.convert("L"))
    assert image.format == "PNG"
    assert image.width <= media.WIDTH + 60
    assert np.median(grey) > 220
    assert grey.min() < 90
    assert 0.02 < (grey < 128).mean() < 0.3


def test_picture_of_words_names_letters_that_the_font_lacks():
    with pytest.raises(UserError, match=r"the built-in font lacks '\U0001f6ac'; set `font`"):
        media.written("a \U0001f6ac", Random(0))
    with pytest.raises(UserError, match="not a readable font"):
        media.written("a", Random(0), b"no")


MIXED = {
    "spoken": {
        "expect": {"tobacco": 1},
        "items": [{"text": ["one", "two"], "audio": [{"say": "I smoke {goods} {place}."}, {"file": "tone.wav"}]}],
        "sample": 2,
    },
    "seen": {
        "expect": {"tobacco": 1},
        "items": [{"image": [{"draw": "tobacco"}, {"text": "{goods}"}, {"file": "dot.png"}]}],
        "pairs": [{"kind": "swap", "lexicon": "goods"}],
    },
}


@pytest.fixture
def beside(tmp_path):
    soundfile.write(tmp_path / "tone.wav", np.zeros(1600, np.float32), 16_000)
    Image.new("RGB", (8, 8)).save(tmp_path / "dot.png")
    return tmp_path


def test_build_is_deterministic_and_its_items_can_be_stored(beside):
    pytest.importorskip("hibari")
    suite = suite_of(base={"language": "en", "seed": 3}, **MIXED)
    items = list(make(suite, MediaFolder(beside)))
    assert items == list(make(suite, MediaFolder(beside)))
    assert items != list(make(suite_of(base={"seed": 4}, **MIXED), MediaFolder(beside)))
    assert [(len(i.text), len(i.image), len(i.audio)) for i in items] == [(2, 0, 2)] * 2 + [(0, 3, 0)] * 6
    for item in items[:2]:
        sound, rate = soundfile.read(io.BytesIO(item.audio[0]))
        assert len(sound) / rate > 0.5
        assert item.audio[1] == (beside / "tone.wav").read_bytes()
    pairs = {item.id: item for item in items}
    for item in items:
        if item.columns["pair"]:
            original = pairs[item.columns["pair"]]
            assert (item.image[0], item.image[2]) == (original.image[0], original.image[2])  # the drawing is the same one
            assert item.image[1] != original.image[1]
    written = write(beside / "dataset", items)
    assert (written.kept, written.quarantined) == (8, 0)
    dataset = Dataset(beside / "dataset")
    assert dataset.take(range(8))[5].columns["functionality"] == "swap"
    assert dataset.splits() == {"test": 8}
    assert np.isnan(dataset.targets(["gambling"])).all()


def test_unusable_files_are_named_with_their_position(tmp_path):
    asked = {
        **MIXED,
        "other": {
            "expect": {"tobacco": 1},
            "templates": ["x"],
            "pairs": [{"kind": "exchange", "text": [], "image": [{"file": "none.png"}], "functionality": "seen"}],
        },
    }
    (tmp_path / "dot.png").mkdir()
    assert unusable_files(suite_of(base={"font": "my.ttf"}, **asked), MediaFolder(tmp_path)) == [
        (("font",), f"my.ttf does not exist in {tmp_path}"),
        (("functionalities", "spoken", "items", 0, "audio", 1, "file"), f"tone.wav does not exist in {tmp_path}"),
        (("functionalities", "seen", "items", 0, "image", 2, "file"), "dot.png is a folder, not a file"),
        (("functionalities", "other", "pairs", 0, "image", 0, "file"), f"none.png does not exist in {tmp_path}"),
    ]


def test_suite_media_stay_in_its_folder(tmp_path):
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "link.png").symlink_to("/etc/passwd")
    functionalities = {
        "seen": {
            "expect": {"tobacco": 0},
            "items": [{"image": [{"file": "link.png"}, {"file": "../dot.png"}, {"file": "/dev/zero"}]}],
        }
    }
    suite = suite_of(base={"font": "/etc/passwd"}, **functionalities)
    folder = MediaFolder(tmp_path / "suite")
    found = unusable_files(suite, folder)
    assert [problem.split(",")[0] for _, problem in found] == [
        "/etc/passwd leads to /etc/passwd",
        "link.png leads to /etc/passwd",
        f"../dot.png leads to {tmp_path}/dot.png",
        "/dev/zero leads to /dev/zero",
    ]
    assert all(f"outside {tmp_path}/suite" in problem for _, problem in found)
    with pytest.raises(UserError, match="leads to /etc/passwd, outside"):
        list(make(suite, folder))


def test_speak_without_the_voice_package_is_one_clear_line(beside, monkeypatch):
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(UserError) as caught:
        list(make(suite_of(**MIXED), MediaFolder(beside)))
    assert caught.value.lines == ("`say` (2 sentences) needs the speech synthesizer hibari-tts: pip install 'vigil[demo]'",)
