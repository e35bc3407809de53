"""Spans of characters to targets of tokens and back: inverse for spans of whole words, whatever the passages."""

import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vigil_data.decode.text import decode_text, set_up, token_places
from vigil_data.decode.text_spans import MarkedSpan, joined_runs, marked_runs, marked_spans, read_spans, token_targets
from vigil_data.loading.packing import gather
from vigil_data.normalization import Normalizer
from vigil_data.specs import Local, TextInput

MARKS = (2.0, -2.0)
"""Log-odds of a token in a span, and outside."""


def definition(byte_level: bool) -> str:
    """A tokenizer of single characters: of words in the manner of BERT's, or with spaces as tokens of their own."""
    letters = {letter: n + 4 for n, letter in enumerate(string.ascii_lowercase)}
    if byte_level:
        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **letters}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    else:
        pieces = {f"##{letter}": n + 26 for letter, n in letters.items()}
        tokenizer = Tokenizer(models.WordPiece({"[UNK]": 1, "[CLS]": 2, "[SEP]": 3, **letters, **pieces}, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    return tokenizer.to_str()


DEFINITIONS = [definition(byte_level) for byte_level in (False, True)]
WORDS = st.lists(st.tuples(st.text(string.ascii_lowercase, min_size=1, max_size=6), st.booleans()), min_size=1, max_size=12)


def spec(max_tokens: int, overlap: int) -> TextInput:
    return TextInput(tokenizer=Local(path="unused"), max_tokens=max_tokens, overlap=overlap, max_passages=100)


@settings(deadline=None)
@given(
    words=WORDS,
    gaps=st.lists(st.sampled_from([" ", "  ", "\n"]), min_size=12, max_size=12),
    max_tokens=st.integers(5, 40),
    overlap=st.integers(0, 2),
    kind=st.sampled_from(DEFINITIONS),
)
def test_token_targets_and_marked_spans_are_inverse(words, gaps, max_tokens, overlap, kind):
    text, spans = "", []
    for (word, in_span), gap in zip(words, gaps, strict=False):
        if in_span:
            start = len(text)
            joins = spans and text[spans[-1][1] :].isspace()
            spans = [*spans[:-1], (spans[-1][0], start + len(word))] if joins else [*spans, (start, start + len(word))]
        text += word + gap
    settings_ = spec(max_tokens, overlap)
    places = token_places(text, 100, settings_, set_up(kind, settings_))
    targets = [token_targets(places_T2, spans) for places_T2 in places]
    assert not any(
        np.isnan(target)
        for places_T2, of in zip(places, targets, strict=True)
        for (a, b), target in zip(places_T2, of, strict=True)
        if b > a
    )
    found = marked_spans("x", [(0, one) for one in places], [np.where(of > 0.5, *MARKS) for of in targets])
    marked = {place for span in found for place in range(span.start, span.stop) if not text[place].isspace()}
    assert marked == {place for start, stop in spans for place in range(start, stop) if not text[place].isspace()}
    if len(places) == 1:  # a run that a passage ends is continued by the next one
        assert [(span.start, span.stop) for span in found] == spans


@settings(deadline=None)
@given(text=st.text(max_size=60), max_tokens=st.integers(5, 20), limit=st.integers(0, 4), kind=st.sampled_from(DEFINITIONS))
def test_token_places_belong_to_the_tokens_of_decode_text(text, max_tokens, limit, kind):
    settings_ = spec(max_tokens, 1)
    tokenizer = set_up(kind, settings_)
    decoded, _ = gather(decode_text(text, 0, limit, settings_, tokenizer))
    places = token_places(text, limit, settings_, tokenizer)
    assert [len(one) for one in places] == [len(arrays["input_ids"]) for arrays in decoded.arrays]
    for places_T2, span in zip(places, decoded.spans, strict=True):
        for start, stop in places_T2[places_T2[:, 1] > 0].tolist():
            assert span.start <= start < stop <= span.stop
            assert text[start:stop].strip() == text[start:stop]


def test_token_places_of_normalized_text_are_in_the_original():
    settings_ = spec(20, 0)
    text = "\u200bab \U0001f600 c"
    normalize = Normalizer("nfkc", {"\U0001f600": " de ", "\u200b": ""})
    (places_T2,) = token_places(text, 9, settings_, set_up(DEFINITIONS[0], settings_), normalize=normalize)
    assert [text[a:b] for a, b in places_T2] == ["", "a", "b", "\U0001f600", "\U0001f600", "c", ""]


def test_token_targets_need_half_of_a_token():
    places_T2 = np.array([[0, 0], [0, 4], [5, 8], [5, 5]])
    assert token_targets(places_T2, [(2, 6)]).tolist()[1:3] == [1, 0]
    assert np.isnan(token_targets(places_T2, [(2, 6)])[[0, 3]]).all()
    assert token_targets(places_T2, []).tolist()[1:3] == [0, 0]


def test_marked_runs_end_at_tokens_that_are_not_marked():
    places_T2 = np.array([[0, 2], [0, 0], [3, 5], [5, 6], [7, 9]])
    assert marked_runs(places_T2, np.array([0.6, 0.0, 0.9, 0.5, 0.7])) == [(0, 5, 0.9), (7, 9, 0.7)]


def test_joined_runs_joins_what_overlaps():
    assert joined_runs([(4, 9, 0.6), (0, 3, 0.7), (2, 5, 0.9), (9, 12, 0.8)]) == [(0, 9, 0.9), (9, 12, 0.8)]


def test_marked_spans_are_of_the_text_of_each_passage():
    one = np.array([[0, 3]])
    found = marked_spans("spam", [(0, one), (2, one)], [np.array([-1.0]), np.array([1.0, 9.0])])
    assert [(s.label, s.index, s.start, s.stop) for s in found] == [("spam", 2, 0, 3)]
    assert isinstance(found[0], MarkedSpan)
    assert found[0].probability == pytest.approx(1 / (1 + np.exp(-1.0)))


def test_read_spans_reads_what_the_importer_writes():
    assert read_spans("[[3, 6], [9, 10]]") == [(3, 6), (9, 10)]
    assert read_spans("[]") == []


@pytest.mark.parametrize("value", ["", "no", "[1, 2]", "[[1, 2, 3]]", "[[2, 1]]", "[[-1, 2]]", '[["a", "b"]]', "[[true, 2]]", 7])
def test_read_spans_refuses_anything_else(value):
    with pytest.raises(ValueError, match=r"not a JSON list of \[start, stop\]"):
        read_spans(value)
