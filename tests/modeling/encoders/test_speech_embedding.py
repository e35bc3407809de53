"""The speech embedding against its published graphs, and what it does with windows, weights and layers."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vigil_data.errors import UserError
from vigil_data.specs import Inputs
from vigil_modeling.encoders import build_encoder, freeze, set_mode
from vigil_modeling.encoders.audio.speech_embedding import HALF_FIELD, SpeechMel
from vigil_modeling.specs import SpeechEmbeddingAudio
from vigil_modeling.weights import read_tensors

RATE = 16_000


def build(weights=None, rate=RATE, window=1.0, **others):
    torch.manual_seed(0)
    spec = SpeechEmbeddingAudio.model_validate({"weights": weights or {"kind": "random"}} | others)
    return build_encoder("audio", spec, Inputs.model_validate({"audio": {"rate": rate, "window": window}})).eval()


def local(path):
    return {"kind": "local", "path": str(path)}


def sounds(samples=RATE):
    generator = np.random.default_rng(0)
    seconds = np.arange(samples) / RATE
    tone = 0.3 * np.sin(2 * np.pi * 440 * seconds) * np.exp(-2 * seconds)
    half = np.where(seconds < 0.5, 0.1 * generator.standard_normal(samples), 0)
    return np.stack([tone, half, 0.05 * generator.standard_normal(samples) + 0.2, np.zeros(samples)]).astype(np.float32)


def published(folder, name, content):
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: content.astype(np.float32)})[0]


def published_mel(folder, samples_T):
    """The features of one window, which the published graph takes as 16-bit samples."""
    return published(folder, "melspectrogram", samples_T[None] * 2.0**15)[0, 0] / 10 + 2


def test_speech_mel_equals_the_published_graph(speech_embedding_folder):
    expected = np.stack([published_mel(speech_embedding_folder, window_T) for window_T in sounds()])
    ours = SpeechMel()(torch.from_numpy(sounds()))[:, 0]
    assert ours.shape == expected.shape == (4, 97, 32)
    torch.testing.assert_close(ours, torch.from_numpy(expected), atol=1e-3, rtol=0)


def test_speech_embedding_equals_the_published_graph_on_the_window_between_silence(speech_embedding_folder):
    encoder = build(local(speech_embedding_folder / "embedding_model.onnx"), pool="none")
    assert sum(p.numel() for p in encoder.parameters()) == 328_152
    padded = np.pad(sounds(), ((0, 0), (HALF_FIELD, HALF_FIELD)))
    mels = [published_mel(speech_embedding_folder, window_T) for window_T in padded]
    views = np.stack([mel[8 * token :][:76] for mel in mels for token in range(encoder.tokens)])[..., None]
    expected = torch.from_numpy(published(speech_embedding_folder, "embedding_model", views)).view(4, encoder.tokens, 96)
    with torch.no_grad():
        tokens = encoder(torch.from_numpy(sounds()))
    torch.testing.assert_close(tokens, expected, atol=1e-3, rtol=1e-3)
    assert expected[:3].std() > 5
    assert (expected[0] - expected[1]).abs().max() > 5


@pytest.mark.parametrize(("window", "tokens"), [(0.05, 1), (0.5, 7), (1.0, 13), (5.0, 63)])
def test_speech_embedding_has_a_token_every_eighty_milliseconds(window, tokens):
    every, mean = build(window=window, pool="none"), build(window=window)
    assert (every.width, every.tokens, mean.tokens) == (96, tokens, 1)
    waveform = torch.from_numpy(sounds(round(window * RATE)))
    with torch.no_grad():
        assert every(waveform).shape == (4, tokens, 96)
        torch.testing.assert_close(every(waveform).mean(1, keepdim=True), mean(waveform))
        torch.testing.assert_close(mean(waveform)[:1], mean(waveform[:1]), atol=1e-5, rtol=1e-5)
        assert mean(**mean.blank()).isfinite().all()


def test_speech_embedding_freezes_its_lowest_layers_and_the_running_statistics():
    encoder = build()
    layers = encoder.layers()
    assert sorted(id(p) for layer in layers for p in layer) == sorted(map(id, encoder.parameters()))
    assert len(layers) == 7
    freeze(encoder, 2)
    set_mode(encoder, training=True)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encoder(torch.from_numpy(sounds())).square().sum().backward()
    assert all(tensor.equal(before[name]) for name, tensor in encoder.state_dict().items())
    without = {name.split(".")[0] + name.split(".")[1] for name, p in encoder.named_parameters() if p.grad is None}
    assert without == {"stem0", "stem2", "stages0"}


@pytest.mark.parametrize("training", [True, False])
def test_speech_embedding_recomputes_activations_with_equal_gradients(training):
    """In evaluation mode too, in which a rank without audio runs a blank window."""
    waveform = torch.from_numpy(sounds())
    gradients = []
    for recompute in (False, True):
        encoder = build().train(training)
        runs = []
        encoder.stages[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        if recompute:
            encoder.checkpoint_activations()
        encoder(waveform).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
        assert len(runs) == 1 + recompute
        assert encoder.state_dict()["stem.2.num_batches_tracked"] == training
    torch.testing.assert_close(*gradients)


def test_speech_embedding_refuses_other_rates_and_other_weights(tmp_path):
    with pytest.raises(UserError, match=r"inputs\.audio\.rate: is 8000, but the speech embedding takes 16000 Hz"):
        build(rate=8000)
    weights = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "other")
    product = onnx.helper.make_node("MatMul", ["x", "other"], ["y"])
    shape = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in ("x", "y")]
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([product], "g", shape[:1], shape[1:], [weights])), tmp_path / "w.onnx"
    )
    assert read_tensors(tmp_path / "w.onnx")["other"].equal(torch.ones(2, 2))
    with pytest.raises(UserError, match=r"w\.onnx: 1 tensors cannot match the architecture's 42 by order"):
        build(local(tmp_path / "w.onnx"))
    Path(tmp_path / "w.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"w\.onnx is not a readable weight file"):
        build(local(tmp_path / "w.onnx"))
