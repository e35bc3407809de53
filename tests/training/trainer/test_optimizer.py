"""The optimizer step: parameter groups, schedule, and an epoch against a hand-written loop."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vigil_data.loading.loader import Request
from vigil_modeling.losses import MaskedLoss
from vigil_modeling.safety_model import build_model
from vigil_training.checkpoint.reader import CheckpointReader
from vigil_training.trainer.data_module import DataModule
from vigil_training.trainer.lr_scheduler import lr_multiplier
from vigil_training.trainer.optimizer import parameter_groups


def by_name(model, groups):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_parameter_groups_give_each_weight_its_rate_and_decay(make_recipe):
    recipe = make_recipe(
        model__encoders__text__lr_factor=0.5,
        model__encoders__text__layer_decay=0.1,
        model__encoders__image__lr_factor=0.25,
        optimizer__lr=1.0,
        optimizer__weight_decay=0.3,
    )
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    found = by_name(model, parameter_groups(model, recipe.model, recipe.optimizer))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        factor = 1.0
        if name.startswith("encoders.image"):
            factor = 0.25
        elif "embeddings" in name:
            factor = 0.5 * 0.1**2
        elif name.startswith("encoders.text"):
            factor = 0.5 * (0.1 if ".layer.0." in name else 1.0)
        assert found[name] == (pytest.approx(factor), 0.3 if parameter.ndim > 1 else 0.0), name


def test_parameter_groups_leave_out_frozen_weights(make_recipe):
    recipe = make_recipe(model__encoders__text__frozen=True, model__encoders__image__frozen=1)
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    found = by_name(model, parameter_groups(model, recipe.model, recipe.optimizer))
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("encoders.text") for name in found)
    assert any(name.startswith("encoders.image") for name in found)


@given(st.integers(1, 1000), st.floats(0, 0.99), st.floats(0, 1))
def test_lr_multiplier_rises_to_one_and_falls_to_its_end(steps, warmup, end):
    rising = math.ceil(warmup * steps)
    factors = [lr_multiplier(step, steps, warmup, end) for step in range(steps)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in factors)
    assert all(a < b for a, b in pairwise(factors[:rising]))
    assert all(a >= b - 1e-12 for a, b in pairwise(factors[rising:]))
    assert factors[-1] == pytest.approx(1.0 if rising == steps else end)
    if rising:
        assert factors[rising - 1] == 1.0


@pytest.mark.parametrize("accumulate", [1, 3])
def test_train_step_equals_a_loop_written_by_hand(accumulate, make_recipe, train, tmp_path):
    """Each step minimises the mean over all known targets of its batches, however unequal they are; the last group is short."""
    weights = {"cat": 2.0, "bright": 0.5}
    recipe = make_recipe(
        training__epochs=1,
        training__accumulate=accumulate,
        training__clip=0.5,
        # Adam makes steps of any size out of gradients that are zero but for rounding, such as those of the keys' bias.
        optimizer__eps=1e-3,
        model__dropout=0.0,
        model__encoders__text__config__hidden_dropout_prob=0.0,
        model__encoders__text__config__attention_probs_dropout_prob=0.0,
        loss__kind="bce",
        loss__label_weights=weights,
    )
    run = train(recipe, tmp_path / "run")

    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    data = DataModule(recipe, 1)
    plan = data.plan(0)
    groups = [range(i, min(i + accumulate, plan.steps)) for i in range(0, plan.steps, accumulate)]
    assert accumulate == 1 or len(groups[-1]) < accumulate
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}], lr=0.003, weight_decay=0.01, eps=1e-3
    )
    for number, group in enumerate(groups):
        for parameter_group in optimizer.param_groups:
            parameter_group["lr"] = 0.003 * lr_multiplier(number, len(groups), 0.1, 0.0)
        loss, weight = torch.zeros(()), 0.0
        for step in group:
            batch = data.reader[Request(data.train_rows[plan.rows(step, 0)])]
            logits_NL = model(batch).logits_NL
            for row in range(len(batch)):
                for column, label in enumerate(recipe.taxonomy.labels):
                    target = batch.targets[row, column]
                    if not target.isnan():
                        cell = nn.functional.binary_cross_entropy_with_logits(logits_NL[row, column], target)
                        loss, weight = loss + weights[label] * cell, weight + weights[label]
        optimizer.zero_grad()
        (loss / weight).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    trained = CheckpointReader(run.checkpoint("last")).weights()
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(trained[name], expected, rtol=1e-3, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_data_module_counts_unlabelled_items_in_the_loss(make_recipe):
    known = DataModule(make_recipe(), 1)
    counted = DataModule(make_recipe(loss={"kind": "bce", "unlabeled": {"cat": 0.3}}), 1)
    assert len(counted.train_rows) == 120 > len(known.train_rows)
    loss = MaskedLoss(counted._recipe.loss, counted._recipe.taxonomy, counted.target_counts)
    batch = counted.reader[Request(counted.train_rows)]
    assert (
        counted._weights.sum()
        == loss.weight(batch.targets).item()
        == 120 + counted.target_counts.positive_L[1] + (counted.target_counts.negative_L[1])
    )
