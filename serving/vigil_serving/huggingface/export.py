"""Export a guard as a folder in Hugging Face's layout, if that decides as the trained guard, each prompt run alone."""

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vigil_data.decode import Decoder
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, write_json
from vigil_data.items import Item, Role
from vigil_data.loading.batch import collate
from vigil_data.loading.packing import pack
from vigil_data.progress import ProgressCallback
from vigil_data.prompts.build import find_template
from vigil_data.prompts.chat_template import render
from vigil_data.prompts.messages import chat_messages
from vigil_data.prompts.specs import PromptSpec
from vigil_data.specs import Inputs
from vigil_data.taxonomy import Taxonomy
from vigil_evaluation.calibration.calibrators import FittedCalibration
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_modeling.encoders.transformers_common import quiet
from vigil_modeling.guards.guard_model import GuardModel
from vigil_modeling.specs import GuardSpec
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import Bundle, ExportedModel
from vigil_serving.bundle.metadata import FORMAT, BundleMetadata, Parity, PromptSettings
from vigil_serving.bundle.save import write_metadata
from vigil_serving.export.modules import inference_network, prompt_settings
from vigil_serving.export.publish import Provenance
from vigil_serving.export.reference import decision_settings
from vigil_serving.export.step_cache import library_versions
from vigil_serving.huggingface.card import EXAMPLE, Agreement, guard_card
from vigil_serving.huggingface.language_model import causal_language_model
from vigil_serving.huggingface.tokenizer_files import TOKENIZER, write_tokenizer_files
from vigil_serving.llm_server.folder import LLM, GoldenPrompt, LanguageModelFacts, load_guard_folder
from vigil_serving.llm_server.prompts import BatchPrompts, batch_prompts
from vigil_serving.parity.cases import Case, make_cases
from vigil_serving.parity.compare import Backend, ParityError, compare_outputs, failure

DType = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[DType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GOLDEN_PROMPTS = 16
"""Prompts of llm.json, of synthetic items."""
MAX_SHARD_SIZE = "4GB"


@dataclass(frozen=True, slots=True)
class GuardFolder:
    """An exported guard.

    Attributes:
        bundle: the folder, as a bundle without graphs.
        agreement: agreement with the trained guard.
    """

    bundle: Bundle
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class _Compared:
    """A case with its prompts, and what the trained guard says: log odds and raw probabilities ``[N, L]``."""

    case: Case
    prompts: BatchPrompts
    odds_NL: NDArray[np.float64]
    raw_NL: NDArray[np.float64]


def export_guard(
    model: GuardModel,
    spec: GuardSpec,
    inputs: Inputs,
    taxonomy: Taxonomy,
    *,
    thresholds: Mapping[str, float],
    examples: Sequence[Item],
    to: StrPath,
    provenance: Provenance,
    dtype: DType = "fp32",
    text_only: bool = False,
    calibrated: FittedCalibration | None = None,
    policy: CompiledPolicy | None = None,
    progress: ProgressCallback | None = None,
    sign: Callable[[Path], None] | None = None,
) -> GuardFolder:
    """Export a guard; nothing is written if the folder decides otherwise than the trained guard.

    Args:
        model: the trained guard.
        spec: the recipe's ``model``.
        inputs: how its media are decoded.
        taxonomy: its labels.
        thresholds: label to the calibrated probability from which the label is decided (default: 0.5).
        examples: real items on which the folder is compared, in addition to synthetic ones; they do not enter it.
        to: the folder; an older one there is replaced.
        provenance: origin of the model.
        dtype: type of the weights.
        text_only: export a guard that also reads pictures or sound without them.
        calibrated: calibration of the guard's probabilities (default: none).
        policy: the compiled policy, if there is one.
        progress: called with (task, done, total).
        sign: signs the folder before it is renamed into place.

    Raises:
        UserError: if the folder cannot hold the guard, or ``to`` is occupied.
        ParityError: if the folder decides otherwise.
    """
    to, report = Path(to), progress or (lambda *_: None)
    manifest.check_target(to)
    left_out = _check(model, text_only)
    text_inputs = inputs.model_copy(update={"image": None, "audio": None})
    assert text_inputs.text is not None
    guard = inference_network(model)
    prompt = prompt_settings(guard)
    assert prompt is not None
    settings = decision_settings(text_inputs, guard.labels, thresholds, calibrated, policy, prompt)
    exported = ExportedModel(
        path=to,
        modalities=("text",),
        labels=guard.labels,
        graphs={},
        variants={},
        inputs=settings.inputs,
        thresholds=settings.thresholds,
        calibrated=settings.calibrated,
        policy=policy,
        prompt=prompt,
    )
    compared = _run_guard(guard, prompt, text_inputs, examples, report)
    template = find_template(spec.prompt, text_inputs.text.tokenizer)
    rendered = None if template.text is None else render(template)
    system = None if rendered is None else rendered.between is not None
    with manifest.written_bundle(to, sign) as folder:
        report("writing the language model", 0, None)
        language_model = causal_language_model(guard, spec.encoders.text).to(DTYPES[dtype])
        architecture = type(language_model).__name__
        language_model.generation_config.update(max_new_tokens=1, do_sample=False)
        with quiet(), contextlib.redirect_stderr(io.StringIO()):  # a bar that the library always shows
            language_model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        del language_model
        write_tokenizer_files(folder, text_inputs.text.tokenizer, template, guard.language_model.max_positions)
        for file in folder.glob("*.safetensors"):  # the library lets nobody but the owner read them
            file.chmod((folder / TOKENIZER).stat().st_mode)
        written = WrittenFolder(folder, dtype)
        parity, difference = _compare(written, exported, guard, compared, report)
        agreement = Agreement(parity, difference, *_rendered(written, spec.prompt, prompt, compared, system=system))
        metadata = BundleMetadata(
            format=FORMAT,
            name=provenance.name,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            modalities=("text",),
            labels=guard.labels,
            graphs={},
            variants={},
            versions=library_versions(),
            parity=(parity,),
            licences={part: found for part, found in provenance.licences.items() if part in ("text", "tokenizer")},
            lineage=provenance.lineage,
        )
        texts = tuple(written.decode([number]) for number in prompt.pieces.answer_ids)
        facts = LanguageModelFacts(texts, guard.structure.subtrees, _golden(written, compared))
        write_metadata(folder, metadata, exported, taxonomy, TOKENIZER)
        write_json(folder / LLM, asdict(facts))
        if provenance.recipe is not None:
            (folder / manifest.RECIPE).write_text(provenance.recipe, encoding="utf-8")
        card = guard_card(
            exported,
            metadata,
            facts,
            agreement,
            spec=spec.prompt,
            system=system,
            plain=written.decode(_example_prompt(prompt, text_inputs)),
            architecture=architecture,
            evaluation=provenance.evaluation,
            left_out=left_out,
        )
        (folder / manifest.MODEL_CARD).write_text(card, encoding="utf-8")
    return GuardFolder(load_guard_folder(to)[0], agreement)


class WrittenFolder:
    """A folder that is being written, loaded as its readers load it.

    Args:
        folder: has the language model and its tokenizer.
        dtype: type of the weights.
    """

    def __init__(self, folder: Path, dtype: DType) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.dtype = dtype
        with quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model = model.eval()

    def log_odds(self, prompt: Sequence[int], answer_ids: Sequence[int]) -> float:
        """Return the log odds of yes against no after a prompt."""
        with torch.inference_mode():
            logits_V = (
                self._model(input_ids=torch.tensor([list(prompt)]), use_cache=False, logits_to_keep=1).logits[0, -1].float()
            )
        return float(logits_V[answer_ids[0]] - logits_V[answer_ids[1]])

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of messages, by the tokenizer's chat template."""
        encoded = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, in which special tokens are recognized."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _check(model: GuardModel, text_only: bool) -> str:
    """Return the modalities that the folder leaves out, as text."""
    media = " and ".join({"image": "pictures", "audio": "sound"}[m] for m in model.modalities if m != "text")
    if media and not text_only:
        raise UserError(
            f"the guard reads {media}, which a folder of a language model cannot hold; export it with `vigil export`, or a copy "
            "that reads text alone with --text-only"
        )
    if text_only and not media:
        raise UserError("--text-only: the guard reads text alone; leave it out")
    if model.structure.ordinal:
        raise UserError("model.ordinal_heads: a folder of a language model cannot hold them; use `vigil export`")
    return media


def _run_guard(
    guard: GuardModel, prompt: PromptSettings, inputs: Inputs, examples: Sequence[Item], report: ProgressCallback
) -> list[_Compared]:
    """Run the trained guard on synthetic items, on extremes and on real items; golden cases suffice, since no graph has sizes."""
    cases = [case for case in make_cases(inputs, examples, (2,), placed=True) if case.golden or case.real]
    compared = []
    for place, case in enumerate(cases):
        report("trained guard", place, len(cases))
        with torch.no_grad():
            prediction = guard(collate(case.packed))
        raw_NL = torch.sigmoid(prediction.logits_NL.double()).numpy()
        compared.append(_Compared(case, batch_prompts(prompt, case.packed), prediction.raw_NL.double().numpy(), raw_NL))
    return compared


def _compare(
    written: WrittenFolder,
    exported: ExportedModel,
    guard: GuardModel,
    compared: Sequence[_Compared],
    report: ProgressCallback,
) -> tuple[Parity, float]:
    """Run every prompt alone with transformers; return the agreement, and the largest difference of log odds."""
    total, done = sum(len(one.prompts.ids) for one in compared), 0
    outputs: list[NDArray[np.floating]] = []
    difference = 0.0
    for one in compared:
        odds_NL = np.empty(one.odds_NL.shape)
        for answer, ids in one.prompts.ids.items():
            report("prompts of the folder", done, total)
            odds_NL.flat[answer] = written.log_odds(ids, guard.pieces.answer_ids)
            done += 1
        difference = max(difference, float(np.abs(odds_NL - one.odds_NL).max(initial=0.0)))
        outputs.append(torch.sigmoid(guard.structure.constrain(torch.from_numpy(odds_NL))).numpy())
    backend = Backend("Hugging Face folder", written.dtype, lambda _: np.empty(0))
    cases, expected = [one.case for one in compared], [one.raw_NL for one in compared]
    parity = compare_outputs(backend, outputs, cases, expected, exported)
    if (reason := failure(parity)) is not None:
        raise ParityError(f"{reason}\nthe folder would not decide as the trained guard does; nothing was written")
    return parity, difference


def _rendered(
    written: WrittenFolder, spec: PromptSpec, prompt: PromptSettings, compared: Sequence[_Compared], *, system: bool | None
) -> tuple[int, int]:
    """Return the number of prompts that are not cut, and of those that the chat template renders to the same tokens."""
    order, labels = prompt.pieces.order, len(prompt.clauses)
    if system is None or order == "auto":
        return 0, 0
    prompts = equal = 0
    for one in compared:
        texts = one.case.packed.segments.get("text")
        cut = {part.item for part in one.prompts.cut}
        for answer, ids in one.prompts.ids.items():
            item, label = divmod(answer, labels)
            if item in cut:
                continue
            segments: list[tuple[Role, str]] = []
            if texts is not None:
                for place in np.flatnonzero(texts.item == item):
                    read = texts.inputs["input_ids"][place][texts.inputs["attention_mask"][place] == 1]
                    segments.append((texts.spans[place].role, written.decode(read.tolist())))
            messages = chat_messages(spec, order, prompt.clauses[label].text, segments, system=system)
            prompts += 1
            equal += written.render(messages) == list(ids)
    return prompts, equal


def _golden(written: WrittenFolder, compared: Sequence[_Compared]) -> tuple[GoldenPrompt, ...]:
    """Return prompts of synthetic items, spread over them, and the longest, for which a server's context may be too short.

    All can be sent as text, which a prompt that is cut within a character cannot.
    """
    prompts = [
        GoldenPrompt(ids, float(one.odds_NL.flat[answer]))
        for one in compared
        if one.case.golden
        for answer, ids in one.prompts.ids.items()
        if written.encode(written.decode(ids)) == list(ids)
    ]
    longest = max(range(len(prompts)), key=lambda place: len(prompts[place].ids))
    spread = np.linspace(0, len(prompts) - 1, GOLDEN_PROMPTS - 1).astype(int).tolist()
    return tuple(prompts[place] for place in sorted({*spread, longest}))


def _example_prompt(prompt: PromptSettings, inputs: Inputs) -> tuple[int, ...]:
    """Return the prompt of the card's example and the first label."""
    item = Item("example", tuple(text for _, text in EXAMPLE), roles={"text": tuple(role for role, _ in EXAMPLE)})
    return batch_prompts(prompt, pack([Decoder(inputs, ()).decode(item)])).ids[0]
