"""Augmentation in the loader: the same for every number of workers, only in training, and with the stated strength."""

import io
from random import Random

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from vigil_data.augmentation.audio import add_noise, change_speed, compress, equalize, reverberate
from vigil_data.augmentation.augmenter import Augmenter
from vigil_data.augmentation.image import overlay_text, recompress
from vigil_data.augmentation.rand_augment import rand_augment
from vigil_data.augmentation.specs import Augmentation, RandAugment
from vigil_data.augmentation.text import augment_texts
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.decode import Decoder
from vigil_data.items import Item
from vigil_data.loading.loader import Reader, Request
from vigil_data.specs import Inputs

RATE = 8_000
EVERYTHING = Augmentation.model_validate(
    {
        "image": {"rand_augment": {}, "overlay": {"probability": 1}, "jpeg": {"probability": 1}},
        "audio": {name: {"probability": 1} for name in ("speed", "reverberation", "equalizer", "noise", "codec")},
    }
)
INPUTS = Inputs.model_validate({"image": {"size": 32}, "audio": {"rate": RATE, "window": 0.5, "hop": 0.25}})


def item(name: str) -> Item:
    picture, sound = io.BytesIO(), io.BytesIO()
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels_HWC).save(picture, "PNG")
    soundfile.write(sound, tone(1.0), RATE, format="WAV")
    return Item(name, ("some text",), (picture.getvalue(),), (sound.getvalue(),), {"a": 1.0})


def tone(seconds: float, hertz: float = 440.0, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def arrays(decoded) -> list[np.ndarray]:
    return [array for of in decoded.segments.values() for each in of.arrays for array in each.values()]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("augmentation") / "dataset"
    write(path, [item(f"i{n}") for n in range(4)])
    return Reader(path, Dataset(path).version, INPUTS, ("a",), EVERYTHING, seed=3)


def tensors(batch) -> dict[str, torch.Tensor]:
    return {f"{modality} {name}": x for modality, of in batch.segments.items() for name, x in of.inputs.items()}


def test_reader_augments_training_requests_alone_and_each_item_the_same_in_any_batch(reader):
    rows = np.arange(4)
    plain, first, second = (reader[Request(rows, 1.0, epoch)] for epoch in (None, 0, 1))
    alone = reader[Request(rows[2:3], 1.0, 0)]
    for name in ("image pixels", "audio waveform"):
        whole = tensors(first)[name]
        each = len(whole) // 4
        assert not torch.equal(whole, tensors(plain)[name])
        assert not torch.equal(whole, tensors(second)[name])
        assert not torch.equal(whole[:each], whole[each : 2 * each]), "equal items are changed differently"
        assert torch.equal(whole[2 * each : 3 * each], tensors(alone)[name])
        assert (whole.shape, whole.dtype) == (tensors(plain)[name].shape, tensors(plain)[name].dtype)


def test_reader_gives_the_same_in_a_worker(reader):
    import pickle

    copied = pickle.loads(pickle.dumps(reader))
    left, right = (tensors(one[Request(np.arange(4), 1.0, 5)]) for one in (reader, copied))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_augmenter_leaves_the_global_generators_alone(reader):
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    reader[Request(np.arange(4), 1.0, 0)]
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002


def test_augmenter_changes_all_windows_of_a_file_alike():
    spec = Augmentation.model_validate({"audio": {"speed": {"probability": 1, "factor": (0.6, 0.9)}}})
    decoded = Decoder(INPUTS, ()).decode(Item("x", (), (), item("x").audio))
    changed = Augmenter(spec, INPUTS, 0, 0).augment_decoded(decoded)
    pitches = {
        int(np.abs(np.fft.rfft(array["waveform"] * np.hanning(RATE // 2), 8 * RATE)).argmax())
        for array in changed.segments["audio"].arrays
    }
    assert len(decoded.segments["audio"].arrays) == 3
    assert max(pitches) - min(pitches) <= 16  # 2 Hz
    assert 0.6 * 440 - 2 <= min(pitches) / 8 <= 0.9 * 440 + 2


@pytest.mark.parametrize(("decay", "ratio"), [(0.1, 15.0), (0.5, 0.0)])
def test_reverberate_adds_a_tail_with_the_stated_decay_and_energy(decay, ratio):
    click = np.zeros(2 * RATE, np.float32)
    click[100] = 0.5
    wet = reverberate(click, RATE, decay, ratio, np.random.default_rng(0)).astype(np.float64)
    energy = wet**2
    assert np.linalg.norm(wet) == pytest.approx(0.5)
    assert not np.abs(wet[:100]).max() > 1e-6, "a room does not sound before the click"
    assert 10 * np.log10(energy[100] / energy[101:].sum()) == pytest.approx(ratio, abs=0.01)
    # Schroeder 1965: the energy that remains falls in a straight line, by 60 dB in the decay time.
    remaining = 10 * np.log10(np.cumsum(energy[101:][::-1])[::-1][: round(decay * RATE / 2)])
    slope = np.polyfit(np.arange(len(remaining)) / RATE, remaining, 1)[0]
    assert slope == pytest.approx(-60 / decay, rel=0.1)


def test_equalize_changes_each_frequency_by_the_stated_gain():
    tones = {80.0: 6.0, 80 * 50**0.5: -6.0, 3990.0: 0.0}  # 80 Hz, the middle on a logarithmic scale, and half the rate
    pure = [tone(1.0, hertz) for hertz in tones]
    shaped = equalize(np.sum(pure, axis=0), RATE, [6.0, -6.0, 0.0]).astype(np.float64)
    levels = [20 * np.log10(abs(np.dot(shaped, one)) / np.dot(one, one)) for one in map(np.float64, pure)]
    assert np.diff(levels) == pytest.approx(np.diff(list(tones.values())), abs=0.15)
    assert np.linalg.norm(shaped) == pytest.approx(float(np.linalg.norm(np.sum(pure, axis=0))), rel=1e-5)


def test_reverberate_and_equalize_leave_silence_silent():
    silence = np.zeros(RATE, np.float32)
    assert not reverberate(silence, RATE, 0.3, 5.0, np.random.default_rng(0)).any()
    assert not equalize(silence, RATE, [6.0, -6.0]).any()


@pytest.mark.parametrize("snr", [0.0, 10.0, 30.0])
def test_add_noise_has_the_stated_signal_to_noise_ratio(snr):
    signal_T = tone(1.0)
    for seed in range(4):
        noise_T = add_noise(signal_T, RATE, snr, Random(seed), np.random.default_rng(seed)) - signal_T
        assert 10 * np.log10(np.mean(signal_T**2) / np.mean(noise_T**2)) == pytest.approx(snr, abs=0.05)


def test_add_noise_leaves_silence_silent():
    silence_T = np.zeros(100, np.float32)
    assert np.array_equal(add_noise(silence_T, RATE, 0.0, Random(0), np.random.default_rng(0)), silence_T)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.25])
def test_change_speed_moves_the_pitch_and_keeps_the_length(factor):
    changed_T = change_speed(tone(1.0), RATE, factor)
    assert changed_T.shape == (RATE,)
    assert np.abs(np.fft.rfft(changed_T)).argmax() == pytest.approx(440 * factor, abs=2)
    end = round(RATE / factor) if factor > 1 else RATE
    assert not changed_T[end + 10 :].any()


@pytest.mark.parametrize("codec", ["mp3", "ogg"])
@pytest.mark.parametrize("level", [0.3, 3.0])
def test_compress_loses_little_and_keeps_length_and_level(codec, level):
    signal_T = tone(1.0, level=level) + tone(1.0, 660.0, level / 2)
    made_T = compress(signal_T, RATE, codec, 0.5)
    assert made_T.shape == signal_T.shape
    assert not np.array_equal(made_T, signal_T)
    middle = slice(RATE // 4, 3 * RATE // 4)
    assert np.corrcoef(made_T[middle], signal_T[middle])[0, 1] > 0.98
    assert np.std(made_T[middle]) == pytest.approx(np.std(signal_T[middle]), rel=0.1)


def test_recompress_is_worse_with_a_lower_quality():
    pixels_CHW = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    errors = [np.abs(recompress(pixels_CHW, quality).astype(int) - pixels_CHW).mean() for quality in (10, 50, 95)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_overlay_text_draws_letters_within_the_image():
    grey_CHW = np.full((3, 64, 64), 128, np.uint8)
    for seed in range(20):
        drawn_CHW = overlay_text(grey_CHW, "Follow for more", Random(seed))
        share = (drawn_CHW != 128).any(axis=0).mean()
        assert 0.01 < share < 0.9
    assert (grey_CHW == 128).all(), "the given image is unchanged"


def test_rand_augment_is_torchvisions():
    from torchvision.transforms import v2

    pixels_CHW = np.random.default_rng(1).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    torch.manual_seed(11)
    expected = v2.RandAugment(3, 12, fill=128)(torch.from_numpy(pixels_CHW.copy()))
    assert np.array_equal(rand_augment(pixels_CHW, RandAugment(operations=3, magnitude=12), 11), expected.numpy())


def test_augmenter_perturbs_about_as_many_texts_as_asked():
    spec = Augmentation.model_validate({"text": {"perturb": {"probability": 0.25, "kinds": ["leetspeak", "casing"]}}})
    augmenter = Augmenter(spec, INPUTS, 0, 0)
    decoder = Decoder(INPUTS, ())
    texts = [augmenter.augment_item(Item(str(n), ("A simple sentence",)), decoder).text[0] for n in range(800)]
    # 1 of 6 perturbed texts is lower case and 1 of 6 upper; all differ from the text.
    assert sum(text != "A simple sentence" for text in texts) / 800 == pytest.approx(0.25, abs=0.05)


@settings(deadline=None)
@given(texts=st.lists(st.text("aeist XЖ,.\U0001f600", max_size=60), max_size=3), seed=st.integers(0, 10**6))
def test_augmented_texts_have_at_most_the_tokens_for_which_their_batch_was_planned(letters, texts, seed):
    spec = Augmentation.model_validate({"text": {"perturb": {"probability": 1}}})
    before = Item("x", tuple(texts))
    after = Augmenter(spec, letters.inputs, seed, 0).augment_item(before, letters)
    drawn = augment_texts(before.text, spec.text, Random(f"{seed} 0 text x"))
    for index, (text, uncut) in enumerate(zip(after.text, drawn, strict=True)):
        assert uncut.startswith(text)
        room, tokens, wanted = (count_tokens(letters, item, index) for item in (before, after, Item("x", drawn)))
        assert tokens == min(room, wanted)


def test_augmenter_cuts_separated_letters(letters):
    spec = Augmentation.model_validate({"text": {"perturb": {"probability": 1, "kinds": ["spacing"]}}})
    texts = {Augmenter(spec, letters.inputs, seed, 0).augment_item(Item("x", ("seat tie",)), letters).text for seed in range(20)}
    assert ("s e",) in texts, "two words leave room for two letters"
    assert ("seattie",) in texts


def count_tokens(decoder: Decoder, item: Item, index: int) -> int:
    return sum(int((places_T2[:, 1] > 0).sum()) for text, places_T2 in decoder.token_places(item) if text == index)


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """A decoder whose tokens are words."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    text = {"tokenizer": {"kind": "local", "path": str(folder)}, "max_tokens": 8, "overlap": 0}
    return Decoder(Inputs.model_validate({"text": text}), ())


def test_augmenter_leaves_modalities_without_a_change_alone():
    spec = Augmentation.model_validate({"text": {"perturb": {}}})
    decoded = Decoder(INPUTS, ()).decode(item("x"))
    changed = Augmenter(spec, INPUTS, 0, 0).augment_decoded(decoded)
    assert all(np.array_equal(a, b) for a, b in zip(arrays(decoded), arrays(changed), strict=True))
    assert spec.changes == ("text",)
