"""GradualUnfreezing: which weights change in which step, by how much at first, and in which mode encoders are."""

import pytest
import torch

from vigil_modeling.safety_model import build_model
from vigil_training.trainer.callbacks import MetricsCallback
from vigil_training.trainer.callbacks.gradual_unfreezing import release_steps
from vigil_training.trainer.lightning_internals import ends_optimizer_step

NORMS = {"kind": "timm", "weights": {"kind": "random"}, "name": "test_efficientnet", "unfreeze": {"unit": "steps", "start": 4}}


def layer_names(recipe, modality):
    """Names of the parameters of each layer, the lowest first."""
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(p)] for p in layer] for layer in model.encoder(modality).layers()]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_unfreezing_trains_each_layer_from_its_step_on(accumulate, make_recipe, train, recorded, monkeypatch, tmp_path):
    modes, before = {}, MetricsCallback.on_train_batch_end

    def record(self, trainer, module, *rest):
        before(self, trainer, module, *rest)
        if ends_optimizer_step(trainer):
            modes[trainer.global_step] = module.model.encoder("text").training

    monkeypatch.setattr(MetricsCallback, "on_train_batch_end", record)
    recipe = make_recipe(
        training__epochs=2,
        training__accumulate=accumulate,
        model__encoders__text__unfreeze={"unit": "steps", "start": 2, "every": 3},
        optimizer={"lr": 0.01, "warmup": 0.0, "weight_decay": 0.0, "lr_end": 1.0},
    )
    train(recipe, tmp_path / "run")
    steps = max(recorded)
    assert steps > 9
    for layer, release in zip(layer_names(recipe, "text"), (8, 5, 2), strict=True):
        changed = [s for s in range(1, steps + 1) if any(not torch.equal(recorded[s][n], recorded[s - 1][n]) for n in layer)]
        assert changed == list(range(release + 1, steps + 1))
        # AdamW's first update is the learning rate at most, whatever the steps before.
        first = max(float((recorded[release + 1][name] - recorded[release][name]).abs().max()) for name in layer)
        assert first == pytest.approx(0.01, rel=1e-3)
    assert modes == {step: step > 2 for step in range(1, steps + 1)}
    head = [n for n in recorded[0] if n.startswith("heads") and not torch.equal(recorded[1][n], recorded[0][n])]
    assert head


def test_unfreezing_keeps_the_statistics_of_held_norms(make_recipe, train, recorded, tmp_path):
    recipe = make_recipe(training__epochs=1, model__encoders__image=NORMS, inputs__image__size=64, training__max_steps=6)
    train(recipe, tmp_path / "run")
    statistics = [name for name in recorded[0] if "running_mean" in name]
    kept = {n: [s for s in range(1, 7) if not torch.equal(recorded[s][n], recorded[s - 1][n])] for n in statistics}
    assert not any(step <= 4 for steps in kept.values() for step in steps)
    assert [5, 6] in kept.values()
    assert kept["encoders.image.backbone.model.bn1.running_mean"] == []


def test_release_steps_translates_epochs_and_leaves_frozen_layers_out(make_recipe):
    recipe = make_recipe(
        model__encoders__text={
            **make_recipe().model.encoders.text.model_dump(),
            "frozen": 1,
            "unfreeze": {"start": 0, "every": 2, "layers": 1},
        }
    )
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    releases = release_steps(model, recipe.model, [4, 9, 12])
    embeddings, lower, upper = layer_names(recipe, "text")
    assert releases == dict.fromkeys(lower, 9)
    assert not releases.keys() & {*embeddings, *upper}
    never = release_steps(model, recipe.model, [4, 9])
    assert never == dict.fromkeys(lower, 9), "released at the end of the run"


@pytest.mark.parametrize("other", [{"frozen": True}, {"lora": {}}])
def test_recipe_refuses_unfreezing_without_trained_layers(other, make_recipe):
    text = make_recipe().model.encoders.text.model_dump()
    with pytest.raises(ValueError, match="no layer of the encoder is ever trained; leave one of them out"):
        make_recipe(model__encoders__text={**text, **other, "unfreeze": {}})
