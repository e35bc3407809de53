"""Contrastive pre-training: retrieval, resuming, frozen encoders, several ranks, and runs that are no classifiers."""

import json
import os

import numpy as np
import pytest
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.dataset.token_cache import list_entries
from vigil_data.errors import UserError
from vigil_training.pretraining.retrieval import partner_ranks, retrieval_metrics
from vigil_training.trainer.callbacks import CheckpointCallback


class Stop(Exception):
    """Stops a run in these tests."""


@pytest.mark.parametrize("loss", ["siglip", "clip"])
def test_fit_recipe_learns_which_media_belong_together(loss, contrastive, train, tmp_path):
    run = train(contrastive(objective={"kind": "contrastive", "loss": loss}), tmp_path / "run")
    recall = json.loads(run.retrieval.read_text())
    assert recall["recall@1"] > 20 / 45  # chance: 1 / 45
    assert recall["recall@10"] > 0.9  # chance: 10 / 45
    assert set(recall) == {f"recall@{k}{pair}" for k in (1, 10) for pair in ("", "/text-image", "/image-text")}
    assert "training on 320 items; 80 have one modality and are left out" in run.log.read_text()


def test_fit_recipe_resumes_contrastive_training_bitwise(contrastive, train, saved, monkeypatch, tmp_path):
    recipe = contrastive(training__epochs=2, model__dropout=0.1)
    expected = train(recipe, tmp_path / "undisturbed")
    ended = CheckpointCallback.on_train_epoch_end

    def stopping(self, *arguments):
        ended(self, *arguments)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointCallback, "on_train_epoch_end", stopping)
        with pytest.raises(Stop):
            train(recipe, tmp_path / "run")
    found = train(recipe, tmp_path / "run")
    assert "resuming" in found.log.read_text()
    left, right = (saved(run.checkpoint("last")) for run in (expected, found))
    assert left.keys() == right.keys()
    assert ("exp_avg", "similarity.log_scale") in left
    assert ("exp_avg", "heads.heads.0.weight_LD") not in left
    assert [key for key in left if not left[key].equal(right[key])] == []
    assert expected.retrieval.read_text() == found.retrieval.read_text()


def test_fit_recipe_trains_one_encoder_against_cached_tokens_of_the_other(contrastive, make_recipe, train, pairs, tmp_path):
    encoders = make_recipe().model.encoders.model_dump(mode="json", exclude_none=True)
    encoders["image"]["frozen"] = True
    run = train(contrastive(training__epochs=1, training__token_cache=True, model__encoders=encoders), tmp_path / "run")
    assert [entry.path.name.partition("-")[0] for entry in list_entries(pairs / "dataset")] == ["image"]
    assert run.finished


def test_classifier_starts_from_contrastive_encoders(contrastive, make_recipe, train, saved, tmp_path):
    run = train(contrastive(training__max_steps=1), tmp_path / "run")
    recipe = make_recipe(
        init_from={"path": str(run.path), "parts": ["encoders", "projections"]}, training__max_steps=1, optimizer__lr=1e-9
    )
    found, expected = (saved(each.checkpoint("last")) for each in (train(recipe, tmp_path / "classifier"), run))
    names = [name for kind, name in expected if kind == "weight" and name.startswith(("encoders.", "projections."))]
    assert len(names) > 20
    for name in names:
        np.testing.assert_allclose(found["weight", name], expected["weight", name], atol=1e-7)


def test_commands_that_need_labels_refuse_a_contrastive_run(contrastive, train, tmp_path):
    run = train(contrastive(training__max_steps=1), tmp_path / "run")
    for command in (["evaluate", str(run.path)], ["export", str(run.path), "--to", str(tmp_path / "bundle")]):
        with pytest.raises(UserError, match="its objective is contrastive: it has encoders, and no trained heads"):
            CliRunner().invoke(build(), command, catch_exceptions=False)
    with pytest.raises(UserError, match=r"init_from: \{path: .*run, parts: \[encoders, projections\]\}"):
        run.model()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__monitor": "validation/macro_ap"}, "'validation/macro_ap' is not a metric of the validation"),
        ({"training__modality_dropout": {"text": 0.1}}, r"training\.modality_dropout: contrastive pre-training compares"),
        ({"loss": {"kind": "focal"}}, "loss: contrastive pre-training has no targets"),
        ({"model__encoders__text": None, "inputs__text": None}, "needs inputs and encoders of two modalities"),
    ],
)
def test_recipe_refuses_what_contrastive_training_cannot_do(changes, message, contrastive):
    with pytest.raises(ValueError, match=message):
        contrastive(**changes)


def test_data_module_refuses_a_dataset_without_pairs(contrastive, train, tmp_path):
    with pytest.raises(UserError, match="split train has no item with two of text, image, which are compared"):
        train(contrastive(data__where="images = 0"), tmp_path / "run")


def test_partner_ranks_count_items_that_are_as_near():
    random = np.random.default_rng(0)
    query_ND, target_ND = random.normal(size=(2, 30, 4)).astype(np.float32)
    expected = [1 + sum(query_ND[i] @ target_ND[j] > query_ND[i] @ target_ND[i] for j in range(30)) for i in range(30)]
    assert partner_ranks(query_ND, target_ND).tolist() == expected
    assert partner_ranks(np.ones((5, 4), np.float32), np.ones((5, 4), np.float32)).tolist() == [5] * 5


def test_retrieval_metrics_compare_items_that_have_both_modalities():
    embeddings_MND = np.stack([np.eye(12, dtype=np.float32)] * 3)
    embeddings_MND[1] = np.roll(embeddings_MND[1], 1, axis=0)
    present_MN = np.ones((3, 12), np.bool_)
    present_MN[2, 1:] = False
    metrics = retrieval_metrics(embeddings_MND, present_MN, ("text", "image", "audio"))
    assert metrics["validation/recall@1/text-image"] == 0
    assert metrics["validation/recall@1/text-audio"] == metrics["validation/recall@1/image-audio"] == 1  # one candidate
    assert metrics["validation/recall@1"] == pytest.approx(4 / 6)
    assert retrieval_metrics(embeddings_MND, np.zeros((3, 12), np.bool_), ("text", "image", "audio")) == {}


RANK = """
    import torch
    import torch.distributed as dist
    from datetime import timedelta
    from torch.nn.functional import normalize
    from vigil_modeling.losses.contrastive import ContrastiveLoss
    from vigil_modeling.specs import Contrastive
    from vigil_training.distributed.rank_group import RankGroup
    from vigil_training.distributed.world import World, find_world
    from vigil_training.pretraining.gathering import gather_embeddings

    world = find_world()
    dist.init_process_group("gloo", init_method=f"tcp://{world.address}:{world.port}", rank=world.rank, world_size=world.size)
    ranks, alone = RankGroup(world, timedelta(seconds=60)), RankGroup(World(), None)
    torch.manual_seed(0)
    inputs, weight = torch.randn(3, 9, 5, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    present = torch.rand(3, 9) < 0.7
    present[2, 6:] = False  # No item of rank 1 has the third modality.
    rows = slice(0, 6) if world.rank == 0 else slice(6, 9)

    def gradients(rows, ranks, kind):
        loss_of = ContrastiveLoss(Contrastive(loss=kind)).double()
        own = weight.clone().requires_grad_()
        embeddings = normalize(inputs[:, rows] @ own, dim=-1) * present[:, rows, None]
        loss = loss_of(*gather_embeddings((embeddings, present[:, rows]), ranks))
        loss.backward()
        return [loss.detach(), own.grad, *(parameter.grad for parameter in loss_of.parameters())]

    for kind in ("siglip", "clip"):
        expected = gradients(slice(0, 9), alone, kind)
        found = gradients(rows, ranks, kind)
        for each in found[1:]:  # as DDP averages gradients
            dist.all_reduce(each)
            each /= world.size
        for left, right in zip(found, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
        assert found[1].abs().max() > 1e-3
"""


def test_gather_embeddings_gives_two_ranks_the_gradients_of_one(launched):
    process = launched(RANK, env={**os.environ, "OMP_NUM_THREADS": "1"})
    process.communicate(timeout=300)
    assert process.returncode == 0
