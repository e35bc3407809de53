"""What a guard's Hugging Face folder has for LLM servers, besides the files of a bundle: ``llm.json``.

The folder is a bundle without graphs (:mod:`vigil_serving.bundle`): labels, thresholds, calibration, policy and prompt are in the
same files, and the language model is in the files that transformers, vLLM and TGI load.
"""

from dataclasses import dataclass
from pathlib import Path

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.json_fields import Count
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import Bundle, load_bundle

LLM = "llm.json"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A prompt, and the log odds of yes against no that the trained guard has after it.

    Attributes:
        ids: token ids of the complete prompt.
        log_odds: of yes against no, before hierarchy and calibration.
    """

    ids: tuple[Count, ...]
    log_odds: float


@dataclass(frozen=True, slots=True)
class LanguageModelFacts:
    """Content of llm.json.

    Attributes:
        answer_texts: the text of each answer token alone, yes first, as servers report tokens.
        subtrees: of each label, the numbers of itself and its descendants: its log odds are the largest of theirs; empty if
            parents do not count.
        golden: prompts with known log odds, by which a client finds that a server serves another model.
    """

    answer_texts: tuple[str, ...]
    subtrees: tuple[tuple[Count, ...], ...]
    golden: tuple[GoldenPrompt, ...]


def load_guard_folder(path: StrPath) -> tuple[Bundle, LanguageModelFacts]:
    """Load a guard's Hugging Face folder; the language model stays on disk.

    Raises:
        UserError: if it is no such folder, or was altered.
    """
    path = Path(path)
    if not (path / LLM).is_file():
        raise UserError(f"{path}: not a guard's Hugging Face folder: it has no {LLM}; make one with `vigil guard export`")
    bundle = load_bundle(path)
    facts: LanguageModelFacts = json_fields.structure(LanguageModelFacts, manifest.read_json(path / LLM), f"{path / LLM}")
    if bundle.prompt is None or len(facts.answer_texts) != 2 or not facts.golden:
        raise UserError(f"{path}: incomplete; export the guard again with `vigil guard export`")
    return bundle, facts
