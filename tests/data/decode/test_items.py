"""Whole items: what they hold, what they become, and which of them are refused."""

import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from vigil_data.decode import Decoder, Facts, Undecodable, probe
from vigil_data.errors import MediaError
from vigil_data.items import ROLES, Item
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import Refusal, Span, spans_of
from vigil_data.specs import AudioInput, ImageInput, Inputs, Local, TextInput


def picture(width=40, height=30):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "green").save(file, "PNG")
    return file.getvalue()


def sound(seconds=1.0, rate=8_000):
    file = io.BytesIO()
    soundfile.write(file, np.linspace(-0.5, 0.5, round(seconds * rate)), rate, format="FLAC")
    return file.getvalue()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return Inputs(
        text=TextInput(tokenizer=Local(path=str(path)), max_tokens=6, overlap=1, max_passages=4),
        image=ImageInput(size=16, max_images=2),
        audio=AudioInput(rate=8_000, window=1.0, hop=0.5, max_windows=3),
    )


@pytest.fixture(scope="module")
def decoder(inputs):
    return Decoder(inputs, ["spam", "scam", "gore"])


def test_decoder_decodes_all_modalities(decoder):
    item = Item(
        "x",
        text=("a b a b a", " ", "b", "a b a b a b a b", "a a"),
        image=(picture(), picture(), picture()),
        audio=(sound(1.6), sound(0.2), sound(3.0)),
        targets={"scam": 1.0, "gore": None, "other": 0.0},
    )
    decoded = decoder.decode(item)
    assert decoded.id == "x"
    assert [span.index for span in decoded.segments["text"].spans] == [0, 0, 2, 3]
    assert [span.index for span in decoded.segments["image"].spans] == [0, 1]
    assert [span.index for span in decoded.segments["audio"].spans] == [0, 0, 0]
    assert [span.start for span in decoded.segments["audio"].spans] == [0, 0.5, 1.0]
    assert decoded.cut == {"text": 3, "image": 1, "audio": 6}  # b a b a b | a b | a a; and 0.2 s is one window, 3 s are five
    np.testing.assert_array_equal(decoded.targets, np.array([np.nan, 1, np.nan], np.float32))
    assert decoded.segments["text"].arrays[1]["input_ids"].tolist() == [2, 5, 4, 3]


def test_decoder_segments_have_the_role_and_time_of_their_medium(decoder):
    item = Item(
        "x",
        text=("a b a b a", "b", " ", "a"),
        image=(picture(), picture()),
        audio=(sound(1.2),),
        roles={"text": ("context", "transcript", "title", "body"), "image": ("body", "cover")},
        times=(None, (12.5, 17), (0, 1), None),
    )
    packed = decoder.decode_all([Item("y", text=("b",)), item])
    text, image, audio = (packed.segments[modality] for modality in ("text", "image", "audio"))
    assert [(span.index, span.role, span.time) for span in text.spans] == [
        (0, "body", None),
        (0, "context", None),
        (0, "context", None),
        (1, "transcript", (12.5, 17)),
        (3, "body", None),
    ]
    assert text.item.tolist() == [0, 1, 1, 1, 1]
    assert text.role.tolist() == [0, *(ROLES.index(role) for role in ("context", "context", "transcript")), 0]
    assert text.time.tolist() == [[-1, -1]] * 3 + [[12.5, 17], [-1, -1]]
    assert image.role.tolist() == [0, ROLES.index("cover")]
    assert image.time.tolist() == [[-1, -1]] * 2
    assert audio.role.tolist() == [0, 0]
    np.testing.assert_array_equal(audio.time, np.array([[0, 1], [0.5, 1.2]], np.float32))
    assert [array.dtype for array in (text.role, text.time)] == [np.int64, np.float32]
    batch = collate(packed).segments["text"]
    np.testing.assert_array_equal(batch.role, text.role)
    np.testing.assert_array_equal(batch.time, text.time)
    assert spans_of(text.role, text.time) == tuple(Span(0, role=span.role, time=span.time) for span in text.spans)


def test_decoder_omits_absent_modalities(decoder):
    decoded = decoder.decode(Item("x", text=("", "\n")))
    assert decoded.segments == {}
    assert decoded.cut == {}
    assert np.isnan(decoded.targets).all()


def test_decoder_ignores_modalities_that_the_model_lacks():
    decoder = Decoder(Inputs(image=ImageInput(size=16)), [])
    decoded = decoder.decode(Item("x", text=("a",), image=(picture(),), audio=(b"broken",)))
    assert set(decoded.segments) == {"image"}


@pytest.mark.parametrize(
    ("item", "modality", "index", "reason"),
    [
        (Item("x", image=(picture(), b"no")), "image", 1, "not an image of a supported format, or its header is truncated"),
        (Item("x", text=("a",), audio=(sound(), sound(), b"")), "audio", 2, "the file is empty"),
    ],
)
def test_decoder_refuses_an_item_with_one_broken_medium(decoder, item, modality, index, reason):
    for look in (probe, decoder.decode):
        with pytest.raises(Undecodable) as caught:
            look(item)
        error = caught.value
        assert isinstance(error, MediaError)
        assert (error.modality, error.index, error.reason) == (modality, index, reason)
        assert str(error) == f"{modality}[{index}]: {reason}"
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_probe_measures_characters_images_and_seconds():
    item = Item("x", text=("four", "é😀"), image=(picture(), picture()), audio=(sound(1.5), sound(0.25, 44_100)))
    assert probe(item) == Facts(characters=6, images=2, seconds=1.75)
    assert probe(Item("x")) == Facts(0, 0, 0.0)


def test_decode_all_collects_refusals(decoder):
    items = [
        Item("1", text=("a",), targets={"spam": 1}),
        Item("2", image=(b"no",), targets={"spam": 1}),
        Item("3", audio=(sound(),), targets={"gore": 0.25}),
    ]
    packed = decoder.decode_all(items)
    assert packed.ids == ("1", "3")
    assert packed.refused == (Refusal("2", "image", 0, "not an image of a supported format, or its header is truncated"),)
    np.testing.assert_array_equal(packed.targets, np.array([[1, np.nan, np.nan], [np.nan, np.nan, 0.25]], np.float32))
    assert packed.segments["audio"].item.tolist() == [1]
    assert set(packed.segments) == {"text", "audio"}


@pytest.mark.parametrize("items", [[], [Item("1", image=(b"no",))]])
def test_decode_all_of_no_items_keeps_the_labels(decoder, items):
    packed = decoder.decode_all(items)
    assert packed.targets.shape == (0, 3)
    assert packed.targets.dtype == np.float32
    assert len(packed.refused) == len(items)


TEXTS = st.lists(st.sampled_from(["a", "b", "zzz", "a a b", "", "[SEP]"]), max_size=12).map(" ".join)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_decode_all_item_does_not_depend_on_its_batch(decoder, texts):
    packed = decoder.decode_all(Item(str(n), text=(text,)) for n, text in enumerate(texts))
    for row, text in enumerate(texts):
        alone = decoder.decode(Item("x", text=(text,)))
        mine = packed.segments["text"].item == row if "text" in packed.segments else np.zeros(0, bool)
        expected = alone.segments["text"].arrays if alone.segments else []
        assert mine.sum() == len(expected)
        for place, array in zip(np.flatnonzero(mine), expected, strict=True):
            length = packed.segments["text"].inputs["attention_mask"][place].sum()
            np.testing.assert_array_equal(packed.segments["text"].inputs["input_ids"][place][:length], array["input_ids"])


def test_decoder_pickles(decoder, inputs):
    again = pickle.loads(pickle.dumps(decoder))
    item = Item("x", text=("a [SEP] b " * 3,), image=(picture(),), audio=(sound(),), targets={"spam": 1})
    mine, theirs = decoder.decode_all([item]), again.decode_all([item])
    assert again.inputs == inputs
    assert mine.ids == theirs.ids
    np.testing.assert_array_equal(mine.targets, theirs.targets)
    for modality, segments in mine.segments.items():
        for name, array in segments.inputs.items():
            np.testing.assert_array_equal(array, theirs.segments[modality].inputs[name])


def test_decoder_imports_no_torch():
    code = "import sys, vigil_data.decode; print([m for m in ('torch', 'transformers', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_decoder_leaves_out_texts_of_roles_that_the_model_does_not_read(inputs):
    text = inputs.text.model_copy(update={"roles": ("body", "title")})
    item = Item("x", ("a a a", "b", "a b"), (picture(),), roles={"text": ("context", "body", "title"), "image": ("context",)})
    decoder = pickle.loads(pickle.dumps(Decoder(inputs.model_copy(update={"text": text}), [])))
    decoded = decoder.decode(item)
    assert [(span.index, span.role) for span in decoded.segments["text"].spans] == [(1, "body"), (2, "title")]
    assert len(decoded.segments["image"].spans) == 1
    assert "text" not in decoder.decode(Item("y", ("a",), roles={"text": ("context",)})).segments
    assert [decoder.reads(item, "text", index) for index in range(3)] == [False, True, True]
