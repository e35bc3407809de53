"""A guard in training on policies: what the batch asks is answered, by itself and in any company."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vigil_data.prompts.policy_sampling import PolicySampler, PolicyTraining, TrainingQuestions, wordings
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.losses import MaskedLoss
from vigil_modeling.safety_model import build_model
from vigil_modeling.specs import BinaryCrossEntropy, GuardSpec

from .test_guard_model import ORDERS, inputs_of, make_batch

LABELS = {
    name: {"definition": text, "paraphrases": [{"name": f"other {name}", "definition": f"Other words: {text}"}]}
    for name, text in {"insult": "It insults.", "threat": "It threatens.", "cat": "A cat."}.items()
}
TAXONOMY = Taxonomy.model_validate({"name": "guard", "heads": {"first": {"labels": LABELS}}})
POLICIES = PolicyTraining(recode=0.5, paraphrase=0.5, composites=1, leave_out=0.5)
TEXTS = [{"text": 1}, {"text": 2}, {"text": 1}, {"text": 1}]
TARGETS = [[1.0, 0.0, 0.0], [0.0, 0.3, float("nan")], [float("nan")] * 3, [0.0, 0.0, 0.0]]


@pytest.fixture(scope="module")
def make_guard(tiny_lm):
    def make(order):
        torch.manual_seed(1)
        text = {"kind": "decoder", "weights": {"kind": "local", "path": str(tiny_lm("qwen3"))}}
        prompt = {"order": order, "max_tokens": 400}
        spec = GuardSpec(encoders={"text": text}, prompt=prompt, policies=POLICIES)
        inputs = inputs_of(tiny_lm("qwen3")).model_copy(update={"image": None, "audio": None})
        return build_model(spec, inputs, TAXONOMY)

    return make


def asking(batch, questions):
    return replace(batch, questions=questions)


@pytest.mark.parametrize("order", ORDERS)
def test_guard_answers_each_question_of_a_batch_as_if_it_were_the_only_one(make_guard, order):
    model, batch = make_guard(order), make_batch(TEXTS, targets=TARGETS)
    drawn = PolicySampler(TAXONOMY, POLICIES, 0).questions(batch.ids, batch.targets.numpy(), 0)
    assert len(drawn.target_Q) == 3
    table = wordings(TAXONOMY, POLICIES)
    assert any(table[clause].code for question in drawn.questions for clause in question.clauses)
    with torch.no_grad():
        prediction = model(asking(batch, drawn))
        flat = torch.cat([prediction.raw_NL.flatten(), prediction.composites.logits_Q])
        for question in drawn.questions:
            only = TrainingQuestions((question._replace(answer=12),), np.zeros(1, np.float32), np.ones((1, 3), np.bool_))
            alone = model(asking(batch, only)).composites.logits_Q
            torch.testing.assert_close(flat[question.answer], alone[0], atol=1e-4, rtol=0)
    asked = {question.answer for question in drawn.questions}
    assert [cell for cell in range(12) if flat[cell] != 0] == sorted(asked & set(range(12)))
    assert prediction.composites.target_Q.tolist() == drawn.target_Q.tolist()
    assert prediction.composites.member_QL.tolist() == drawn.member_QL.tolist()


def test_guard_learns_from_composites_and_not_from_what_is_unknown(make_guard):
    model, batch = make_guard("policy_first"), make_batch(TEXTS, targets=TARGETS)
    loss = MaskedLoss(BinaryCrossEntropy(), TAXONOMY)
    nothing = TrainingQuestions((), np.zeros(0, np.float32), np.zeros((0, 3), np.bool_))
    assert model(asking(batch, nothing)).composites is None
    drawn = PolicySampler(TAXONOMY, POLICIES, 0).questions(batch.ids, batch.targets.numpy(), 0)
    assert {question.item for question in drawn.questions} == {0, 1, 3}
    prediction = model(asking(batch, drawn))
    loss.of_composites(prediction.composites).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert sum(float(gradient.abs().sum()) for gradient in gradients) > 0


def test_guard_without_drawn_questions_reads_the_labels_own_texts(make_guard):
    model, batch = make_guard("item_first"), make_batch(TEXTS)
    assert [clause.text.split("\n")[0] for clause in model.clauses[:3]] == [
        "Category: insult",
        "Category: threat",
        "Category: cat",
    ]
    assert len(model.clauses) == len(wordings(TAXONOMY, POLICIES)) == 3 * 2 * 4
    assert [question.clauses for question in model.eval().questions(batch)] == [(0,), (1,), (2,)] * 4
