"""Scores of published formats on a tiny random model equal softmaxes over complete logits, computed one token at a time."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from foreign_lm import write_guard

from vigil_data.errors import Failure, UserError
from vigil_data.guard_formats.page import Turn, load_format
from vigil_data.guard_formats.prompts import Content
from vigil_modeling.guards.answer_logits import AnswerModel, choose_device
from vigil_modeling.guards.published_guard import PublishedGuard

CONTENTS = [Content("a red cat"), Content("the sun, the rain and a stone " * 9), Content("No.")]
REPLIES = [Content("yes, a blue dog", "a red cat?"), Content("Title: trees", "the rain " * 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("guard")
    write_guard(made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> AnswerModel:
    return AnswerModel(folder)


class Reference:
    """The library's own tokenizer and model: log-probabilities of each next token, in float64 and without padding."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[no-any-return]

    def among(self, text: str, choices: list[str]) -> np.ndarray:
        """Softmax over the first tokens in which choices that follow a text differ, all of them there."""
        ids = [self.ids(text + choice) for choice in choices]
        depth = next(depth for depth, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1)
        assert len({tokens[depth] for tokens in ids}) == len(choices)
        with torch.inference_mode():
            logits = self.model(torch.tensor([ids[0][:depth]])).logits[0, -1]
        return torch.softmax(logits[[tokens[depth] for tokens in ids]], 0).numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def guard(
    name: str, folder: Path, model: AnswerModel, mapping: dict[str, list[str]], turn: Turn = "prompt", **more: object
) -> PublishedGuard:
    return PublishedGuard(load_format(name), turn, folder, lambda: model, mapping=mapping, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("turn", ["prompt", "response"])
@pytest.mark.parametrize("name", ["shieldgemma", "granite"])
def test_each_category_is_the_softmax_of_yes_and_no(
    name: str, turn: Turn, folder: Path, model: AnswerModel, reference: Reference
) -> None:
    keys = list(load_format(name).categories)[:3]
    scored = guard(name, folder, model, {"one": keys[:1], "any_of_three": keys}, turn)
    contents = CONTENTS if turn == "prompt" else REPLIES
    found = scored.score(contents).probabilities_NL
    for content, (one, several) in zip(contents, found, strict=True):
        prompts = scored.prompts(content)
        each = [reference.among(prompts[key], ["Yes", "No"])[0] for key in keys]
        assert (one, several) == pytest.approx((each[0], max(each)), abs=1e-5)


def test_yes_no_reads_each_labels_policy(folder: Path, model: AnswerModel, reference: Reference) -> None:
    policies = {"spam": "Category: spam\nDefinition: advertisements", "hate": "Category: hate\nDefinition: attacks"}
    scored = guard("yes-no", folder, model, {"hate": ["hate"], "spam": ["spam"]}, policies=policies)
    found = scored.score(CONTENTS[:1]).probabilities_NL[0]
    prompts = scored.prompts(CONTENTS[0])
    assert "Definition: attacks" in prompts["hate"]
    assert found == pytest.approx([reference.among(prompts[k], ["Yes", "No"])[0] for k in ("hate", "spam")], abs=1e-5)


def test_llama_guard_is_unsafe_times_the_first_category(folder: Path, model: AnswerModel, reference: Reference) -> None:
    """`S1` begins `S10` here, which has a token for each digit: it is what is left to all tokens but those of S10 to S14."""
    scored = guard("llama-guard", folder, model, {"unsafe": ["any"], "violence": ["S1", "S9"], "hate": ["S10"]})
    for content, found in zip(CONTENTS, scored.score(CONTENTS).probabilities_NL, strict=True):
        prompt = scored.prompts(content)[None] + "\n\n"
        safe, unsafe = reference.among(prompt, ["safe", "unsafe"])
        digits = reference.among(prompt + "unsafe\nS", [str(digit) for digit in range(1, 10)])
        before = reference.ids(prompt + "unsafe\nS1")
        with torch.inference_mode():
            after = torch.softmax(reference.model(torch.tensor([before])).logits[0, -1], 0).numpy()
        second = [after[reference.ids(prompt + f"unsafe\nS1{digit}")[len(before)]] for digit in range(5)]
        s1, s10 = digits[0] * (1 - sum(second)), digits[0] * second[0]
        assert safe + unsafe == pytest.approx(1)
        assert found == pytest.approx([unsafe, unsafe * (s1 + digits[8]), unsafe * s10], abs=1e-5)


def test_qwen_counts_controversial_and_unsafe_with_their_categories(
    folder: Path, model: AnswerModel, reference: Reference
) -> None:
    mapping = {"any": ["any"], "sexual": ["sexual"], "copyright_": ["copyright", "pii"]}
    scored = guard("qwen3guard", folder, model, mapping)
    names = [category.name for category in load_format("qwen3guard").categories.values()]
    (found,) = scored.score(CONTENTS[:1]).probabilities_NL
    prompt = scored.prompts(CONTENTS[0])[None] + "Safety:"
    verdicts = [" Safe", " Controversial", " Unsafe"]
    shares = dict(zip(verdicts, reference.among(prompt, verdicts), strict=True))

    def named(verdict: str, name: str) -> float:
        """Probability along the tokens of a name, among the names that are left."""
        text, left, probability = f"{prompt}{verdict}\nCategories:", [f" {n}" for n in names], 1.0
        wanted, before = reference.ids(f"{text} {name}"), reference.ids(text)
        ids = {n: reference.ids(text + n) for n in left}
        for depth in range(len(before), len(wanted)):
            following = sorted({ids[n][depth] for n in left})
            if len(following) > 1:
                with torch.inference_mode():
                    logits = reference.model(torch.tensor([wanted[:depth]])).logits[0, -1, following]
                probability *= float(torch.softmax(logits, 0)[following.index(wanted[depth])])
            left = [n for n in left if ids[n][depth] == wanted[depth]]
        return probability

    positive = verdicts[1:]
    sexual = sum(shares[v] * named(v, "Sexual Content or Sexual Acts") for v in positive)
    rights = sum(shares[v] * (named(v, "Copyright Violation") + named(v, "PII")) for v in positive)
    assert found == pytest.approx([1 - shares[" Safe"], sexual, rights], abs=1e-5)


def test_wildguard_sums_over_the_answers_before_the_last_one(folder: Path, model: AnswerModel, reference: Reference) -> None:
    scored = guard("wildguard", folder, model, {"harmful": ["any"]}, "response")
    for content, (found,) in zip(REPLIES, scored.score(REPLIES).probabilities_NL, strict=True):
        prompt = scored.prompts(content)[None] + "Harmful request:"
        total = 0.0
        for request, refusal in product((0, 1), repeat=2):
            first = f"{prompt}{(' yes', ' no')[request]}\nResponse refusal:"
            second = f"{first}{(' yes', ' no')[refusal]}\nHarmful response:"
            shares = [reference.among(text, [" yes", " no"]) for text in (prompt, first, second)]
            total += float(shares[0][request] * shares[1][refusal] * shares[2][0])
        assert found == pytest.approx(total, abs=1e-5)


def test_batches_do_not_change_scores(folder: Path, model: AnswerModel) -> None:
    mapping = {"hate": ["S10"], "any": ["any"]}
    together = guard("llama-guard", folder, model, mapping).score(CONTENTS).probabilities_NL
    alone = guard("llama-guard", folder, model, mapping, batch_tokens=1).score(CONTENTS).probabilities_NL
    assert together == pytest.approx(alone, abs=1e-6)


def test_prompts_are_cut_at_the_models_limit_and_counted(folder: Path, model: AnswerModel) -> None:
    scored = guard("granite", folder, model, {"harm": ["harm"]})
    assert scored.max_tokens == 2048
    scores = scored.score([Content("a red cat " * 2000), Content("a red cat")])
    assert scores.cut_N.tolist() == [True, False]
    assert 2040 <= scores.tokens_N[0] <= 2048


def test_model_without_finite_logits_is_a_failure(folder: Path) -> None:
    broken = AnswerModel(folder)
    broken._model.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(Failure, match="the model's logits are not finite; try --dtype float32"):
        guard("granite", folder, broken, {"harm": ["harm"]}).score(CONTENTS[:1])


def test_architecture_without_positions_and_kept_logits_is_read_too(folder: Path, model: AnswerModel) -> None:
    """A forward that takes neither `position_ids` nor `logits_to_keep` returns all logits."""
    plain = AnswerModel(folder)
    inner = plain._model

    def forward(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: object) -> SimpleNamespace:
        lengths = attention_mask.sum(1)
        rows = [inner(row[None, -int(length) :]).logits[0] for row, length in zip(input_ids, lengths, strict=True)]
        full = torch.zeros(*input_ids.shape, rows[0].shape[-1])
        for place, row in enumerate(rows):
            full[place, -len(row) :] = row
        return SimpleNamespace(logits=full)

    plain._model, plain._options = forward, set()
    sequences, tokens = [[5, 6, 7, 8], [9, 10]], [3, 30, 300]
    for mine, others in zip(plain.read(sequences, 1, tokens), model.read(sequences, 1, tokens), strict=True):
        assert mine == pytest.approx(others, abs=1e-4)


def test_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model .*: cannot be loaded as a causal language model"):
        AnswerModel(tmp_path)


def test_choose_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", "auto") == ("cpu", "float32")
    assert choose_device("cpu", "bfloat16") == ("cpu", "bfloat16")
    with pytest.raises(UserError, match="--device cuda: there is no GPU here"):
        choose_device("cuda", "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", "auto") == ("cuda", "bfloat16")
    assert choose_device("cpu", "auto") == ("cpu", "float32")
