"""WeightAveraging: averages against a recurrence in float64 over recorded weights, and where they are used."""

import json

import pytest
import torch

from vigil_training.checkpoint.consolidate import consolidate
from vigil_training.checkpoint.reader import CheckpointReader, read_consolidated

NORMS = {"kind": "timm", "weights": {"kind": "random"}, "name": "test_efficientnet"}
"""An encoder with running statistics."""


@pytest.mark.parametrize(
    ("ema", "changes"),
    [
        ({"decay": 0.9, "warmup": False}, {"model__encoders__image": NORMS, "inputs__image__size": 64}),
        ({"decay": 0.5, "every_steps": 3, "start_step": 4}, {"training__accumulate": 2}),
    ],
)
def test_weight_averaging_is_the_recurrence_in_float64(ema, changes, make_recipe, train, recorded, tmp_path):
    run = train(make_recipe(training__epochs=2, training__ema=ema, model__encoders__text__frozen=1, **changes), tmp_path / "run")
    every, start, steps = ema.get("every_steps", 1), ema.get("start_step", 0), max(recorded)
    assert steps > start + 2 * every
    average = {name: value.double() for name, value in recorded[start].items()}
    for number, step in enumerate(range(start + every, steps + 1, every), start=1):
        keep = min(ema["decay"], (1 + number) / (10 + number)) if ema.get("warmup", True) else ema["decay"]
        average = {name: keep * value + (1 - keep) * recorded[step][name].double() for name, value in average.items()}
    reader = CheckpointReader(run.checkpoint("last"))
    model = run.model("last").state_dict()
    kept = set(reader.names("average"))
    assert kept == {n for n in average if not n.startswith("encoders.text.model.embeddings") and "num_batches" not in n}
    assert ("encoders.image.backbone.model.bn1.running_mean" in kept) == ("model__encoders__image" in changes)
    for name in kept:
        torch.testing.assert_close(model[name].double(), average[name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(reader.read_full("weight", name), recorded[steps][name], rtol=0, atol=0)


def test_weight_averaging_is_validated_and_leaves_training_alone(make_recipe, train, trained, tmp_path):
    from sklearn.metrics import average_precision_score

    from vigil_data.dataset.dataset import Dataset
    from vigil_training.runs.predict import predict_rows

    run = train(make_recipe(training__ema={"decay": 0.8}), tmp_path / "run")
    reader, plain = (CheckpointReader(each.checkpoint("last")) for each in (run, trained))
    raw, expected = reader.weights(averaged=False), plain.weights()
    assert [name for name in expected if not torch.equal(raw[name], expected[name])] == []

    dataset = Dataset(run.recipe.data.dataset)
    predicted = predict_rows(run, dataset, dataset.rows("validation"), checkpoint="last")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    found = [line for line in lines if "validation/loss" in line][-1]
    known = predicted.targets_NL[:, 0] == predicted.targets_NL[:, 0]
    value = average_precision_score(predicted.targets_NL[known, 0], predicted.logits_NL[known, 0])
    assert found["validation/ap/cat"] == pytest.approx(value)
    plain_lines = [json.loads(line) for line in trained.metrics.read_text().splitlines()]
    assert found["validation/loss"] != [line for line in plain_lines if "validation/loss" in line][-1]["validation/loss"]
    assert [x["train/loss"] for x in lines if "train/loss" in x] == [x["train/loss"] for x in plain_lines if "train/loss" in x]

    consolidate(run.checkpoint("last"), tmp_path / "weights.safetensors")
    written, averaged = read_consolidated(tmp_path / "weights.safetensors"), reader.weights()
    assert [name for name in averaged if not torch.equal(written[name], averaged[name])] == []
    assert any(not torch.equal(averaged[name], raw[name]) for name in raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strategy": {"kind": "deepspeed", "stage": 3, "offload_optimizer": "nvme", "nvme_path": "/tmp"}},
            "training.ema: weights on nvme cannot be averaged; offload to cpu",
        ),
        ({"training__max_steps": 5}, "training.ema.start_step: 9 is not below training.max_steps, 5: nothing is averaged"),
    ],
)
def test_recipe_refuses_averages_that_cannot_be(changes, message, make_recipe):
    with pytest.raises(ValueError, match=message):
        make_recipe(training__ema={"start_step": 9}, **changes)
