"""Batches on which exported formats are compared: every presence pattern, many sizes and lengths, and extremes.

The items are synthetic and follow from a seed, so a bundle can hold some of them as golden cases without anyone's content.
"""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vigil_data.decode import Decoder
from vigil_data.items import MAX_SECONDS, MODALITIES, ROLES, Item, Modality
from vigil_data.loading.packing import Packed, pack
from vigil_data.presence import presence_pattern
from vigil_data.settings import AudioSettings, ImageSettings, Settings, TextSettings

SIZES = range(1, 9)
_WORDS = [
    "a",
    "new",
    "deal",
    "call",
    "now",
    "picture",
    "why",
    "not",
    "18+",
    "win",
    "$100",
    "ça",
    "你好",
    "привет",
    "مرحبا",
    "🙂",
    "http://x.test/?a=1",
]


@dataclass(frozen=True, slots=True)
class Case:
    """One batch of a comparison.

    Attributes:
        name: unique name.
        items: the items.
        packed: the decoded items.
        golden: whether the bundle contains it.
        real: whether its items are real, not synthetic.
    """

    name: str
    items: tuple[Item, ...]
    packed: Packed
    golden: bool
    real: bool = False


def make_cases(inputs: Settings, examples: Sequence[Item], sizes: Sequence[int] = (), *, placed: bool = False) -> list[Case]:
    """Make batches of every presence pattern, mixed batches of every size from 1 to 8, extremes, and batches of real items.

    Args:
        inputs: the modalities that the model takes, and how they are decoded.
        examples: real items; they are never golden.
        sizes: sizes of the batches of each pattern (default: 1, 2, 8 and, in turn, one of 3 to 7, which keeps the gate short).
        placed: give the synthetic items roles and times, for a model that uses them.

    Raises:
        vigil_data.decode.Undecodable: if an example cannot be decoded.
    """
    present = [m for m in MODALITIES if getattr(inputs, m) is not None]
    patterns = [p for n in range(len(present) + 1) for p in itertools.combinations(present, n)]
    decoder = Decoder(inputs, ())
    cases: list[Case] = []
    serial = itertools.count()
    for place, pattern in enumerate(patterns):
        for size in sizes or (1, 2, 3 + place % 5, 8):
            items = tuple(make_item(pattern, next(serial), inputs, placed=placed) for _ in range(size))
            cases.append(_case(f"{presence_pattern(pattern)} x {size}", items, decoder, golden=size == 2))
    for size in SIZES:
        items = tuple(
            make_item(pattern, next(serial), inputs, placed=placed)
            for pattern in itertools.islice(itertools.cycle(reversed(patterns)), size)
        )
        cases.append(_case(f"mixed x {size}", items, decoder, golden=size == max(SIZES)))
    found = [(name, place_media(item, number) if placed else item) for number, (name, item) in enumerate(extremes(inputs))]
    cases += [_case(name, (item,), decoder, golden=True) for name, item in found]
    return cases + real_cases(examples, decoder)


def real_cases(examples: Sequence[Item], decoder: Decoder) -> list[Case]:
    """Make batches of real items; see :func:`make_cases`."""
    cases = []
    for start in range(0, len(examples), max(SIZES)):
        items = tuple(examples[start : start + max(SIZES)])
        packed = pack([decoder.decode(item) for item in items])
        cases.append(Case(f"examples {start + 1} to {start + len(items)}", items, packed, golden=False, real=True))
    return cases


def extremes(inputs: Settings) -> list[tuple[str, Item]]:
    """Return items with extreme media, each with its name; each gets its own batch, so that a difference identifies it."""
    found = []
    if inputs.text:
        words = int(1.2 * inputs.text.max_tokens * inputs.text.max_passages)
        long = " ".join(np.random.default_rng(0).choice(_WORDS, words))
        texts = {
            "empty text": ("",),
            "very long text": (long,),
            "emoji alone": ("😀🎉🙂‍↔️👩🏽‍🚒🇫🇷",),
            "Arabic": ("مرحبا بالجميع، هذا إعلان جديد",),
            "Hebrew": ("שלום לכולם, זו תמונה חדשה",),
            "text of both directions": ("deal \u202eבצעמ\u202c مرحبا 100% now",),
            "separated letters and leetspeak": ("n 3 w  d e a l, fr33 n0w",),
            "five texts": ("one", "two two", "", "four", long[:200]),
        }
        found += [(name, Item(f"extreme: {name}", text=text)) for name, text in texts.items()]
    if inputs.image:
        black, white = (_png(Image.new("RGB", (64, 48), colour)) for colour in ("black", "white"))
        images = {"black image": (black,), "many images": ((black, white) * inputs.image.max_images)[: inputs.image.max_images]}
        found += [(name, Item(f"extreme: {name}", image=image)) for name, image in images.items()]
    if inputs.audio:
        silence = _wav(np.zeros(int(inputs.audio.window * inputs.audio.rate)), inputs.audio.rate)
        loudest = _wav(np.resize([1.0, -1.0], int(2.5 * inputs.audio.window * inputs.audio.rate)), inputs.audio.rate)
        sounds = {"silence": (silence,), "loudest sound": (loudest,), "four sounds": (silence, loudest) * 2}
        found += [(name, Item(f"extreme: {name}", audio=audio)) for name, audio in sounds.items()]
    return found


def make_item(pattern: Sequence[Modality], variant: int, inputs: Settings, *, placed: bool = False) -> Item:
    """Make a synthetic item with the modalities of ``pattern``; ``variant`` selects lengths, counts and extremes.

    Args:
        pattern: the modalities.
        variant: what the item is like.
        inputs: how its media will be decoded.
        placed: give its media roles and times, see :func:`place_media`.
    """
    rng = np.random.default_rng(variant)
    item = Item(
        f"made-{variant}",
        text=_texts(variant, inputs.text, rng) if inputs.text and "text" in pattern else (),
        image=_images(variant, inputs.image, rng) if inputs.image and "image" in pattern else (),
        audio=_sounds(variant, inputs.audio, rng) if inputs.audio and "audio" in pattern else (),
    )
    return place_media(item, variant) if placed else item


def place_media(item: Item, variant: int) -> Item:
    """Return an item with random roles, and random times for about half of its texts, the first and last moment among them."""
    rng = np.random.default_rng([variant, 1])
    counts = {modality: len(getattr(item, modality)) for modality in MODALITIES}
    roles = {modality: tuple(ROLES[n] for n in rng.integers(0, len(ROLES), count)) for modality, count in counts.items() if count}
    moments = [0.0, MAX_SECONDS, *np.round(10 ** rng.uniform(-1, 4, 6), 3)]
    times = [sorted(map(float, rng.choice(moments, 2))) if rng.random() < 0.5 else None for _ in item.text]
    return replace(item, roles=roles, times=tuple((time[0], time[1]) if time else None for time in times) if any(times) else ())


def _case(name: str, items: tuple[Item, ...], decoder: Decoder, golden: bool) -> Case:
    return Case(name, items, pack([decoder.decode(item) for item in items]), golden)


def _texts(variant: int, spec: TextSettings, rng: np.random.Generator) -> tuple[str, ...]:
    """One word, a line, a text of several passages, a paragraph, two texts, a blank text and a real one."""
    words = [int(n) for n in (1, 8, 1.5 * spec.max_tokens, spec.max_tokens // 3, 5, 12)]
    line = " ".join(rng.choice(_WORDS, words[variant % 6]))
    return ((line,), (line,), (line,), (line,), (line, line.upper()), ("  ", line))[variant % 6]


def _images(variant: int, spec: ImageSettings, rng: np.random.Generator) -> tuple[bytes, ...]:
    """Drawing, black, white, transparent, a strip, or several of them."""
    drawing = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    corners = rng.integers(0, 64, 4)
    draw = ImageDraw.Draw(drawing)
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    draw.ellipse(
        (min(corners[0], corners[1]), min(corners[2], corners[3]), max(corners[0], corners[1]), max(corners[2], corners[3])),
        colour,
    )
    plain = [Image.new("RGB", (40, 40), colour) for colour in ("black", "white")]
    clear = Image.new("RGBA", (50, 30), (200, 30, 30, 90))
    strip = drawing.resize((300, 20))
    pictures = ([drawing], [plain[0]], [drawing, strip, clear], [clear], [plain[1], drawing], [strip])[variant % 6]
    return tuple(_png(picture) for picture in pictures[: spec.max_images])


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _sounds(variant: int, spec: AudioSettings, rng: np.random.Generator) -> tuple[bytes, ...]:
    """Tone, silence, blip, noise longer than one window, faint hiss, or two sounds, at rates other than the model's."""
    rates = (8_000, 16_000, 22_050, 44_100)
    rate = rates[variant % len(rates)]
    tone = np.sin(2 * np.pi * rng.uniform(80, 3000) / rate * np.arange(int(0.7 * spec.window * rate)))
    silence = np.zeros(int(0.4 * spec.window * rate) + 1)
    blip = tone[: rate // 50 + 1]
    noise = 0.3 * rng.standard_normal(int((spec.window + 1.2 * (spec.hop or spec.window)) * rate))
    hiss = 1e-3 * rng.standard_normal(int(spec.window * rate))
    sounds = ([tone], [silence], [blip], [noise], [hiss], [tone, blip])[variant % 6]
    return tuple(_wav(sound, rate) for sound in sounds)


def _wav(sound_T: NDArray[np.float64], rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(sound_T, -1, 1), rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
