"""Pretrained audio encoders: their feature extraction in the graph against the transformers library's own extractors."""

import numpy as np
import pytest
import torch
import transformers

from vigil_data.errors import UserError
from vigil_data.specs import Inputs
from vigil_modeling.encoders import build_encoder
from vigil_modeling.encoders.audio.features import ClapLogMel, KaldiFbank, Standardise, WhisperLogMel
from vigil_modeling.specs import TransformersAudio

FAMILIES = ["wav2vec2", "hubert", "wavlm", "ast", "whisper", "clap"]
RATES = {"clap": 48_000}


def build(config, weights=None, load_weights=True, rate=None, window=1.0):
    rate = rate or RATES.get(config.get("model_type"), 16_000)
    spec = TransformersAudio.model_validate({"weights": weights or {"kind": "random"}, "config": config})
    return build_encoder("audio", spec, Inputs.model_validate({"audio": {"rate": rate, "window": window}}), load_weights).eval()


def sounds(samples=None, rate=16_000):
    samples = samples or rate
    generator = np.random.default_rng(0)
    seconds = np.arange(samples) / rate
    tone = 0.3 * np.sin(2 * np.pi * 440 * seconds) * np.exp(-2 * seconds)
    half = np.where(seconds < 0.5, 0.1 * generator.standard_normal(samples), 0)
    return np.stack([tone, half, 0.05 * generator.standard_normal(samples) + 0.2, np.zeros(samples)]).astype(np.float32)


@pytest.mark.parametrize("mels", [80, 128])
def test_whisper_log_mel_equals_the_transformers_extractor(mels):
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    expected = extractor(list(sounds()), sampling_rate=16_000, return_tensors="pt").input_features
    ours = WhisperLogMel(mels, 3000)(torch.from_numpy(sounds()))
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("frames", [1024, 64])
def test_kaldi_fbank_equals_the_ast_extractor(frames):
    extractor = transformers.ASTFeatureExtractor(max_length=frames)
    expected = extractor(list(sounds()), sampling_rate=16_000, return_tensors="pt").input_values
    ours = KaldiFbank(128, frames, extractor.mean, extractor.std)(torch.from_numpy(sounds()))
    assert ours.shape == expected.shape == (4, frames, 128)
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("samples", [20_000, 100_000])
def test_clap_log_mel_equals_the_transformers_extractor(samples):
    """A short window is repeated as often as it fits; a long one is only padded."""
    extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50, max_length_s=2)
    windows = sounds(samples, 48_000)
    given = {"sampling_rate": 48_000, "max_length": 2 * 48_000 + 5000, "return_tensors": "pt"}
    extractor.nb_max_samples = given["max_length"]
    expected = torch.stack([torch.from_numpy(extractor(w, **given).input_features[0].numpy()) for w in windows])
    ours = ClapLogMel(64, 50, 14_000, 2 * 48_000 + 5000)(torch.from_numpy(windows))
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours, expected, atol=0.1, rtol=0)  # decibels


@pytest.mark.parametrize("enabled", [True, False])
def test_standardise_equals_the_wav2vec2_extractor(enabled):
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=enabled)
    expected = extractor(list(sounds()), sampling_rate=16_000, return_tensors="pt").input_values
    torch.testing.assert_close(Standardise(enabled)(torch.from_numpy(sounds())), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_audio_token_depends_only_on_its_window(audio_configs, family):
    encoder = build(audio_configs[family])
    waveform = torch.from_numpy(sounds(rate=RATES.get(family, 16_000)))
    with torch.no_grad():
        tokens = encoder(waveform)
        alone = encoder(waveform[:1])
        assert encoder(**encoder.blank()).isfinite().all()
    assert (encoder.width, encoder.tokens, len(encoder.layers())) == (16, 1, 3)
    assert tokens.shape == (4, 1, 16)
    assert tokens.isfinite().all()
    torch.testing.assert_close(tokens[:1], alone, atol=1e-5, rtol=0)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_audio_trained_weights_get_gradients_without_numpy_random_numbers(audio_configs, family):
    encoder = build(audio_configs[family]).train()
    before = np.random.get_state()[1].copy()  # noqa: NPY002  # the library draws its masks from the global generator
    encoder(torch.from_numpy(sounds(rate=RATES.get(family, 16_000)))).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    listed = sorted(id(p) for layer in encoder.layers() for p in layer)
    assert listed == sorted(map(id, encoder.parameters()))


def test_transformers_audio_ast_token_is_the_clip_embedding(audio_configs):
    config = transformers.ASTConfig(**{k: v for k, v in audio_configs["ast"].items() if k != "model_type"})
    encoder = build(audio_configs["ast"])
    model = transformers.ASTModel(config).eval()
    model.load_state_dict(encoder.model.state_dict())
    features = encoder.features(torch.from_numpy(sounds()))
    with torch.no_grad():
        expected = model(features).pooler_output
        torch.testing.assert_close(encoder(torch.from_numpy(sounds()))[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_transformers_audio_whisper_averages_the_window_without_padding(audio_configs):
    encoder = build(audio_configs["whisper"], window=0.5)
    waveform = torch.from_numpy(sounds(8000))
    with torch.no_grad():
        hidden = encoder.model(encoder.features(waveform)).last_hidden_state
        torch.testing.assert_close(encoder(waveform)[:, 0], hidden[:, :25].mean(1))


@pytest.mark.parametrize("family", ["wav2vec2", "ast", "whisper"])
def test_transformers_audio_reads_stored_weights_and_extractor_settings(audio_configs, tmp_path, family):
    config = transformers.AutoConfig.for_model(**audio_configs[family])
    model = transformers.AutoModel.from_config(config)
    model.save_pretrained(tmp_path)
    weights = {"kind": "local", "path": str(tmp_path)}
    with pytest.raises(UserError, match=r"preprocessor_config\.json: no such file"):
        build({}, weights)
    facts = {"wav2vec2": {"do_normalize": False}, "ast": {"mean": -5.0, "std": 3.0}, "whisper": {}}[family]
    extractors = {
        "wav2vec2": transformers.Wav2Vec2FeatureExtractor,
        "ast": transformers.ASTFeatureExtractor,
        "whisper": transformers.WhisperFeatureExtractor,
    }
    extractors[family](**facts).save_pretrained(tmp_path)
    encoder = build({}, weights)
    source = model.encoder if family == "whisper" else model
    assert all(value.equal(source.state_dict()[name]) for name, value in encoder.model.state_dict().items())
    if family == "wav2vec2":
        assert not encoder.features.enabled
    if family == "ast":
        assert (encoder.features.mean, encoder.features.std) == (-5.0, 3.0)
    bare = build({}, weights, load_weights=False)
    assert bare.state_dict().keys() == encoder.state_dict().keys()
    bare.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert bare(torch.from_numpy(sounds())).equal(encoder(torch.from_numpy(sounds())))


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("wav2vec2", {"rate": 8000}, r"inputs\.audio\.rate is 8000, but wav2vec2 takes 16000"),
        ("whisper", {"window": 3.0}, r"inputs\.audio\.window is 3\.0 s, but whisper takes 2 s at most"),
        ("ast", {"window": 3.0}, r"audio-spectrogram-transformer takes 1\.295 s at most"),
        ("wav2vec2", {"window": 0.001}, "shorter than one frame"),
        ("bert", {}, "bert is not one of the audio encoders audio-spectrogram-transformer, clap, hubert"),
    ],
)
def test_transformers_audio_refuses_impossible_inputs(audio_configs, family, settings, message):
    with pytest.raises(UserError, match=message):
        build(audio_configs.get(family, {"model_type": family}), **settings)
