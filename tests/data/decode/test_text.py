"""Text to passages: against the tokenizer itself without any truncation, cut by hand."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from vigil_data.decode.text import decode_text, load_tokenizer, set_up, tokenizer_file
from vigil_data.errors import UserError
from vigil_data.loading.packing import gather
from vigil_data.normalization import Normalizer
from vigil_data.specs import Local, TextInput

WORDS = ["the", "quick", "brown", "fox", "jump", "##s", "##ed", "a", "b", "c", "é", "😀", "[", "]", "se", "##p"]


def build() -> Tokenizer:
    """A WordPiece tokenizer in the manner of BERT's, with fixed padding set as sentence-transformers ships it."""
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(16)
    return tokenizer


DEFINITION = build().to_str()


def spec(max_tokens=8, overlap=2, max_passages=16, path="unused"):
    return TextInput(tokenizer=Local(path=path), max_tokens=max_tokens, overlap=overlap, max_passages=max_passages)


def passages(text, spec_, limit=10_000):
    return gather(decode_text(text, 0, limit, spec_, set_up(DEFINITION, spec_)))


def test_decode_text_spans_of_normalized_text_are_in_the_original():
    normalize = Normalizer("nfkc", {"😀": " a b c ", "\u200b": ""})
    text = "\u200bfox 😀 \u200bﬁ\u200bx quick\u200b"
    spec_ = spec(max_tokens=5, overlap=0)
    decoded, cut = gather(decode_text(text, 3, 9, spec_, set_up(DEFINITION, spec_), normalize=normalize))
    plain = passages("fox  a b c  fix quick", spec_)[0]
    assert [a["input_ids"].tolist() for a in decoded.arrays] == [a["input_ids"].tolist() for a in plain.arrays]
    assert [(span.index, text[int(span.start) : int(span.stop)]) for span in decoded.spans] == [
        (3, "fox 😀"),  # fox a b
        (3, "😀 \u200bﬁ\u200bx quick"),  # c fix quick
    ]
    assert cut == 0


def test_decode_text_of_invisible_characters_has_no_passage():
    normalize = Normalizer("none", {"\u200b": ""})
    assert gather(decode_text("\u200b", 0, 9, spec(), set_up(DEFINITION, spec()), normalize=normalize))[0].spans == []


def content(text):
    """Ids and offsets of the whole text without special tokens, truncation and padding."""
    tokenizer = Tokenizer.from_str(DEFINITION)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return encoding.ids, encoding.offsets


texts = st.lists(
    st.sampled_from(["the", "quick", "foxs", "jumped", "é", "😀", "\n", "unknownword", "a b c", "\x00", "  "]), max_size=60
).map(" ".join)


@settings(deadline=None)
@given(text=texts, max_tokens=st.integers(5, 20), share=st.floats(0, 0.5))
def test_decode_text_passages_are_slices_of_the_complete_text(text, max_tokens, share):
    overlap = min(int(max_tokens * share), max_tokens - 3)
    decoded, left_out = passages(text, spec(max_tokens, overlap))
    ids, offsets = content(text)
    room, step = max_tokens - 2, max_tokens - 2 - overlap
    starts = range(0, max(1, -(-(len(ids) - overlap) // step)) * step, step) if ids else []
    expected = [[2, *ids[start : start + room], 3] for start in starts]
    assert [array["input_ids"].tolist() for array in decoded.arrays] == expected
    assert left_out == 0
    for array, span, start in zip(decoded.arrays, decoded.spans, starts, strict=True):
        assert array["input_ids"].dtype == array["attention_mask"].dtype == np.int64
        assert array["attention_mask"].tolist() == [1] * len(array["input_ids"])
        places = offsets[start : start + room]
        assert (span.index, span.start, span.stop) == (0, places[0][0], places[-1][1])


@settings(deadline=None)
@given(text=texts, limit=st.integers(0, 5))
def test_decode_text_limit_keeps_the_first_and_counts_the_rest(text, limit):
    whole, _ = passages(text, spec())
    some, left_out = passages(text, spec(), limit)
    assert len(some.arrays) == min(limit, len(whole.arrays))
    rest = len(whole.arrays) - len(some.arrays)
    looked_at = 8 * spec().max_tokens * (limit + 2)  # of a text that goes on beyond, the number is estimated
    assert left_out == rest if len(text) <= looked_at else abs(left_out - rest) <= max(2, rest / 2)
    for mine, theirs in zip(some.arrays, whole.arrays, strict=False):
        np.testing.assert_array_equal(mine["input_ids"], theirs["input_ids"])
    assert list(some.spans) == list(whole.spans)[:limit]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_decode_text_accepts_any_string(text):
    decoded, _ = passages(text, spec())
    for span in decoded.spans:
        assert 0 <= span.start < span.stop <= len(text)


def test_decode_text_spans_are_correct_with_lone_surrogates():
    decoded, _ = passages("\ud800\udfff fox", spec())
    assert decoded.spans[0].stop == len("\ud800\udfff fox")


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000", "\x00", "\u200b"])
def test_decode_text_of_blank_text_has_no_passage(text):
    decoded, left_out = passages(text, spec())
    assert (list(decoded.arrays), list(decoded.spans), left_out) == ([], [], 0)


def test_decode_text_treats_typed_special_tokens_as_plain_text():
    decoded, _ = passages("[SEP] fox", spec(16, 2))
    assert decoded.arrays[0]["input_ids"].tolist().count(3) == 1


def test_decode_text_without_special_tokens_has_all_the_room_for_text():
    plain = TextInput(tokenizer=Local(path="unused"), max_tokens=4, overlap=0, special_tokens=False)
    decoded, _ = gather(decode_text("a b c a b", 0, 9, plain, set_up(DEFINITION, plain)))
    ids = content("a b c a b")[0]
    assert [array["input_ids"].tolist() for array in decoded.arrays] == [ids[:4], ids[4:]]


def test_set_up_without_special_tokens_reads_control_tokens_in_content_as_plain_text():
    made = build()
    made.add_tokens(["<think>", "@user"])  # declared as ordinary, as Qwen does; what is not in angle brackets stays a token
    plain = TextInput(tokenizer=Local(path="unused"), special_tokens=False)
    tokens = set_up(made.to_str(), plain).encode("<think> @user", add_special_tokens=False).tokens
    assert "<think>" not in tokens
    assert "@user" in tokens


class Recorder:
    """A tokenizer that remembers how much it was given to read."""

    def __init__(self, spec_):
        self.tokenizer = set_up(DEFINITION, spec_)
        self.characters = 0

    def encode(self, text, *, add_special_tokens):
        self.characters += len(text)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)


@pytest.mark.parametrize(
    ("text", "most_read"),
    [
        ("the quick brown fox " * 60_000, 10_000),
        ("x" * 1_000_000, 3_000_000),
        (("x" * 15 + " ") * 10_000, 5_000),
        (" " * 50_000 + "the foxs " * 60_000, 200_000),
    ],
)
def test_decode_text_tokenizes_no_more_than_needed(text, most_read):
    spec_ = spec(32, 4)
    recorder = Recorder(spec_)
    decoded, left_out = gather(decode_text(text, 0, 4, spec_, recorder))
    assert recorder.characters < most_read
    ids, _ = content(text)
    for start, array in zip(range(0, 4 * 26, 26), decoded.arrays, strict=len(ids) > 100):
        np.testing.assert_array_equal(array["input_ids"], [2, *ids[start : start + 30], 3])
    exact = max(0, -(-(len(ids) - 4) // 26) - 4)
    assert left_out == pytest.approx(exact, rel=0.02 if text[0] == "t" else 0.5)


def test_load_tokenizer_from_a_file_or_a_folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text(DEFINITION)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert tokenizer_file(Local(path=str(path))) == tmp_path / "tokenizer.json"
        assert load_tokenizer(spec(path=str(path))).padding is None


def test_load_tokenizer_invalid_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(spec(path=str(tmp_path)))
    for wrong in ("{}", "not json", json.dumps([1])):
        (tmp_path / "tokenizer.json").write_text(wrong)
        with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer\.json \(.+\)$") as caught:
            load_tokenizer(spec(path=str(tmp_path)))
        assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text(DEFINITION)
    with pytest.raises(UserError, match=r"max_tokens 4 leaves 2 tokens .* overlap 2 must be less"):
        load_tokenizer(spec(4, 2, path=str(tmp_path)))
