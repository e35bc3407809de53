"""Checks of a model against its inputs and of its parts against each other, made by `vigil recipe check` without torch."""

from vigil_data.errors import UserError
from vigil_data.items import MODALITIES
from vigil_data.prompts.clauses import clauses_of
from vigil_data.prompts.specs import PolicyTraining
from vigil_data.specs import AudioInput, Inputs, TextInput
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.specs import (
    BottleneckFusion,
    DecoderText,
    Encoders,
    GuardEncoders,
    GuardSpec,
    LateFusion,
    MelTimmAudio,
    ModelSpec,
    Random,
    SpeechEmbeddingAudio,
    TransformerFusion,
    TransformersAudio,
    TransformersText,
)

SPEECH_RATE = 16_000
"""Samples a second that pretrained audio encoders were trained at, but for CLAP."""
CLAP_RATE = 48_000
"""Samples a second that CLAP was trained at."""
MIN_WINDOW_SECONDS = 0.025
"""Length of one frame of the audio encoders of the transformers library."""


def find_input_problems(encoders: Encoders | GuardEncoders, inputs: Inputs) -> list[str]:
    """Return what the encoders cannot do with the inputs, one line ``key.path: what`` for each problem.

    Args:
        encoders: the recipe's ``model.encoders``.
        inputs: the recipe's ``inputs``.
    """
    problems: list[str] = []
    if encoders.text is not None and inputs.text is not None:
        problems += _text_problems(encoders.text, inputs.text)
    if encoders.audio is not None and inputs.audio is not None:
        if isinstance(encoders.audio, MelTimmAudio):
            problems += log_mel_problems(encoders.audio, inputs.audio)
        elif isinstance(encoders.audio, SpeechEmbeddingAudio):
            problems += speech_embedding_problems(inputs.audio)
        else:
            problems += _transformers_audio_problems(encoders.audio, inputs.audio)
    return problems


def find_fusion_problems(model: ModelSpec) -> list[str]:
    """Return what is wrong between fusion, auxiliary heads, encoders and width, one line for each problem."""
    problems = []
    fusion, auxiliary = model.fusion, model.auxiliary_heads
    one = sum(getattr(model.encoders, modality) is not None for modality in MODALITIES) == 1
    if isinstance(fusion, TransformerFusion | BottleneckFusion) and model.width % fusion.heads:
        problems.append(f"model.width {model.width} is not a multiple of model.fusion.heads {fusion.heads}")
    if isinstance(fusion, LateFusion):
        if one:
            problems.append("model.fusion.kind: late fusion joins modalities, and the model has one; use mean or gated")
        elif auxiliary is None:
            problems.append("model.fusion.kind: late fusion joins the auxiliary heads; add model.auxiliary_heads: {}")
        elif auxiliary.ogm_ge is not None:
            problems.append(
                "model.auxiliary_heads.ogm_ge: late fusion trains each modality by its own loss alone; leave this out"
            )
    elif one and auxiliary is not None:
        problems.append("model.auxiliary_heads: the model has one modality, whose head this would repeat; leave this out")
    return problems


def find_guard_problems(model: GuardSpec, inputs: Inputs, taxonomy: Taxonomy) -> list[str]:
    """Return what a guard cannot do with its inputs and labels, one line for each problem."""
    problems = []
    if inputs.text is not None and inputs.text.special_tokens:
        problems.append("inputs.text.special_tokens: a guard reads passages within a prompt; set it to false")
    if inputs.text is not None and inputs.text.overlap:
        problems.append("inputs.text.overlap: a guard reads all passages of a text one after another; set it to 0")
    positions = model.encoders.text.config.get("max_position_embeddings")
    if isinstance(positions, int) and model.prompt.max_tokens > positions:
        problems.append(f"model.prompt.max_tokens: is {model.prompt.max_tokens}, but the model takes {positions} tokens at most")
    try:
        clauses_of(taxonomy, lambda _: (), model.prompt.sections)
    except UserError as error:
        problems.append(f"taxonomy.heads: {error}")
    return problems + ([] if model.policies is None else _policy_problems(model.policies, taxonomy))


def _policy_problems(policies: PolicyTraining, taxonomy: Taxonomy) -> list[str]:
    problems = []
    if policies.composites and len(taxonomy.labels) == 1:
        problems.append("model.policies.composites: the taxonomy has one label, so no policy has several clauses; leave this out")
    labels = [label for head in taxonomy.heads.values() for label in head.labels.values()]
    if policies.paraphrase and not any(label.paraphrases for label in labels):
        problems.append("model.policies.paraphrase: no label of the taxonomy has paraphrases; write some, or leave this out")
    return problems


def log_mel_problems(spec: MelTimmAudio, inputs: AudioInput) -> list[str]:
    """Return why a log-mel spectrogram is impossible at this rate and window; empty if it is possible."""
    where = "model.encoders.audio"
    high = spec.high if spec.high is not None else inputs.rate / 2
    problems = []
    if round(spec.step * inputs.rate) < 1:
        problems.append(f"{where}.step: {spec.step} s is less than one sample at {inputs.rate} Hz")
    if high > inputs.rate / 2:
        problems.append(f"{where}.high: {high} Hz is above half the rate of {inputs.rate} Hz")
    if spec.low >= high:
        problems.append(f"{where}.low: {spec.low} Hz is not below the highest frequency, {high} Hz")
    if inputs.samples <= fft_size(spec, inputs) // 2:
        problems.append(f"inputs.audio.window: {inputs.window} s is shorter than one frame of the spectrogram")
    return problems


def fft_size(spec: MelTimmAudio, inputs: AudioInput) -> int:
    """Return the size of the Fourier transform: the least power of two that holds a frame."""
    return 1 << max(round(spec.frame * inputs.rate) - 1, 1).bit_length()


def _text_problems(spec: TransformersText | DecoderText, inputs: TextInput) -> list[str]:
    problems = _config_problems(spec, "model.encoders.text")
    positions, layers = (spec.config.get(name) for name in ("max_position_embeddings", "num_hidden_layers"))
    if isinstance(positions, int) and inputs.max_tokens > positions:
        problems.append(f"inputs.text.max_tokens: is {inputs.max_tokens}, but the encoder takes {positions} tokens at most")
    if isinstance(layers, int) and spec.frozen is not True and spec.frozen > layers + 1:
        problems.append(
            f"model.encoders.text.frozen: is {spec.frozen}, but the encoder has {layers + 1} layers, embeddings included"
        )
    return problems


def _transformers_audio_problems(spec: TransformersAudio, inputs: AudioInput) -> list[str]:
    problems = _config_problems(spec, "model.encoders.audio")
    kind = spec.config.get("model_type")
    rates = [CLAP_RATE] if kind == "clap" else [SPEECH_RATE] if kind is not None else [SPEECH_RATE, CLAP_RATE]
    if inputs.rate not in rates:
        takes = " Hz, or CLAP ".join(f"{rate}" for rate in rates)
        problems.append(f"inputs.audio.rate: is {inputs.rate}, but {kind or 'transformers'} audio encoders take {takes} Hz")
    if inputs.window < MIN_WINDOW_SECONDS:
        problems.append(f"inputs.audio.window: {inputs.window} s is shorter than one frame of the encoder")
    return problems


def speech_embedding_problems(inputs: AudioInput) -> list[str]:
    """Return why the speech embedding cannot encode sound of this rate; empty if it can."""
    if inputs.rate == SPEECH_RATE:
        return []
    return [f"inputs.audio.rate: is {inputs.rate}, but the speech embedding takes {SPEECH_RATE} Hz"]


def _config_problems(spec: TransformersText | DecoderText | TransformersAudio, where: str) -> list[str]:
    if isinstance(spec.weights, Random) and "model_type" not in spec.config:
        example = "llama" if isinstance(spec, DecoderText) else "bert"
        what = f"random weights need the model's configuration, with model_type: {example} or another architecture"
        return [f"{where}.config: {what}"]
    return []
