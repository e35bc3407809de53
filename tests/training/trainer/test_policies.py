"""Training of a guard on policies: what is asked follows from seed, epoch and item; workers and a resumption change nothing."""

import pytest

from vigil_training.trainer.callbacks import MetricsCallback
from vigil_training.trainer.lightning_module import TrainingModule

POLICIES = {"recode": 0.5, "paraphrase": 0.5, "composites": 0.5, "leave_out": 0.3, "variants": 3}
WORDS = {"cat": "The text names a cat.", "bright": "The picture is bright."}
HEADS = {"all": {"labels": {n: {"definition": t, "paraphrases": [{"definition": f"Also: {t}"}]} for n, t in WORDS.items()}}}


class Stop(Exception):
    """Stops a run in these tests."""


@pytest.fixture
def make_recipe_on_policies(make_guard_recipe):
    def make(policies=POLICIES, heads=HEADS, **changes):
        recipe = make_guard_recipe(taxonomy={"name": "tiny", "heads": heads}, checkpoint__every_steps=2, **changes)
        return type(recipe).model_validate(recipe.model_dump() | {"model": recipe.model.model_dump() | {"policies": policies}})

    return make


def test_guard_on_policies_resumes_bitwise_and_asks_the_same_with_workers(
    make_recipe_on_policies, train, assert_same_run, monkeypatch, tmp_path
):
    asked = {}
    loss = TrainingModule.batch_loss

    def batch_loss(self, batch):
        questions = batch.questions
        for n, id_ in enumerate(batch.ids):
            clauses = [question.clauses for question in questions.questions if question.item == n]
            asked.setdefault((self.trainer.current_epoch, id_), []).append(clauses)
        return loss(self, batch)

    monkeypatch.setattr(TrainingModule, "batch_loss", batch_loss)
    recipe = make_recipe_on_policies(training__epochs=2)
    undisturbed = train(recipe, tmp_path / "undisturbed")
    assert {epoch for epoch, _ in asked} == {0, 1}
    assert any(asked[0, id_] != asked[1, id_] for epoch, id_ in asked if epoch == 0)
    assert any(len(clauses) > 1 for _, (of_item, *_) in asked.items() for clauses in of_item)

    with_workers = make_recipe_on_policies(training__epochs=2, data__workers=1)
    record = MetricsCallback.on_train_batch_end
    with monkeypatch.context() as patch:

        def stopping(self, trainer, *rest):
            record(self, trainer, *rest)
            if trainer.global_step == 3:
                raise Stop

        patch.setattr(MetricsCallback, "on_train_batch_end", stopping)
        with pytest.raises(Stop):
            train(with_workers, tmp_path / "run")
    assert_same_run(undisturbed.path, train(with_workers, tmp_path / "run").path)
    assert all(clauses == each[0] for each in asked.values() for clauses in each)


def test_recipe_refuses_policies_that_cannot_be_trained_on(make_recipe_on_policies):
    one = {"all": {"labels": {"cat": HEADS["all"]["labels"]["cat"]}}}
    with pytest.raises(ValueError, match=r"model\.policies\.composites: the taxonomy has one label"):
        make_recipe_on_policies({"composites": 0.5}, one)
    plain = {"all": {"labels": {name: {"definition": text} for name, text in WORDS.items()}}}
    with pytest.raises(ValueError, match=r"model\.policies\.paraphrase: no label of the taxonomy has paraphrases"):
        make_recipe_on_policies({"paraphrase": 0.5}, plain)
    with pytest.raises(ValueError, match=r"loss\.group_dro: .*model\.policies\.composites"):
        make_recipe_on_policies({"composites": 0.5}, loss={"kind": "bce", "group_dro": {"column": "language"}})
