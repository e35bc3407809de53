"""Redaction: masked texts hold no planted name, address, handle, link or number, and blurred images cannot be read."""

import io
import random
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from vigil_training.tracking.evaluations.redaction import blur_image, mask_text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Ask Anna Berg at anna@example.com or on 0171 2345678", "Ask [name] at [e-mail] or on [number]"),
        ("says @berg", "says [handle]"),
        ("mail anna at example dot com or anna [at] example [dot] org", "mail [e-mail] or [e-mail]"),
        ("see https://x.example/@anna?q=1 or t.me/anna and example.com!", "see [link] or [link] and [link]!"),
        ("Anna's mum met J. McDonald-Smith; anna cried. They left.", "[name] mum met [name]; [name] cried. They left."),
        ("ANNA IS HERE", "[name] IS HERE"),
        ("u/anna99 and anna#1234", "[handle] and [handle]"),
        ("card 4111 1111-1111 1111, +49 (171) 234-56, in 12 days", "card [number], [number], in 12 days"),
        ("Ａｎｎａ an\u200bna@example.com", "[name] [e-mail]"),
        ("你好李雷 and मोहन", "[name] and [name]"),
        ("nothing to hide here", "nothing to hide here"),
    ],
)
def test_mask_text_masks_what_identifies_people(text, masked):
    assert mask_text(text) == masked


def test_mask_text_masks_given_names_in_any_case():
    assert mask_text("i saw kittycat_9 and Kitty and kitty", ["KittyCat_9"]) == "i saw [name] and [name] and [name]"


TOKEN = st.text(string.ascii_lowercase, min_size=5, max_size=9).map(lambda word: f"zq{word}")
SURROUNDINGS = st.text(st.characters(codec="utf-8"), max_size=20)


@given(TOKEN, SURROUNDINGS, SURROUNDINGS, st.sampled_from(["{}@example.com", "@{}", "https://example.com/{}", "u/{}", "Z{}"]))
def test_mask_text_leaves_no_planted_token(token, before, after, form):
    assert token not in mask_text(f"{before} {form.format(token)} {after}").lower()


@given(st.text(string.digits, min_size=6, max_size=14), SURROUNDINGS, SURROUNDINGS)
def test_mask_text_leaves_no_planted_number(number, before, after):
    assert number not in mask_text(f"{before} {number} {after}")


def word_image(word, margins):
    """Return a picture of a word that fills it up to some margins."""
    font = ImageFont.load_default(40)
    box = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), word, font=font)
    left, top, right, bottom = (int(edge) for edge in box)
    picture = Image.new("L", (right - left + margins[0] + margins[1], bottom - top + margins[2] + margins[3]), 255)
    ImageDraw.Draw(picture).text((margins[0] - left, margins[2] - top), word, 0, font=font)
    file = io.BytesIO()
    picture.resize((64, 64)).save(file, "PNG")
    return file.getvalue()


def test_blur_image_leaves_no_word_readable():
    """A reader who knows the font and all candidates, but not where they are, reads few; of a thumbnail he reads most."""
    drawn = random.Random(1)
    words = ["".join(drawn.choice(string.ascii_uppercase) for _ in range(6)) for _ in range(40)]

    def read(view):
        one, other = (
            np.array(
                [
                    np.asarray(view(word_image(word, [drawn.randint(0, 5) for _ in range(4)])).convert("L").resize((16, 16)))
                    for word in words
                ],
                float,
            ).reshape(len(words), -1)
            for _ in range(2)
        )
        return (((one[:, None] - other[None]) ** 2).sum(-1).argmin(1) == np.arange(len(words))).mean()

    assert read(lambda data: Image.open(io.BytesIO(data)).resize((16, 16))) > 0.5
    assert read(blur_image) < 0.4


def test_blur_image_drops_metadata_and_keeps_the_shape():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x9286] = "planted comment"
    Image.new("RGBA", (300, 100), "red").convert("RGB").save(file, "JPEG", exif=exif)
    blurred = blur_image(file.getvalue())
    assert blurred.size == (96, 32)
    assert not blurred.getexif()
    assert not blurred.info
