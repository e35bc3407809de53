"""Frozen weights in bf16: what checkpoints hold, and that the model of a run has exactly the trained one's values."""

import json

import pytest
import torch
from sklearn.metrics import average_precision_score

from vigil_data.dataset.dataset import Dataset
from vigil_data.errors import UserError
from vigil_training.checkpoint.consolidate import consolidate
from vigil_training.checkpoint.reader import CheckpointReader, read_consolidated
from vigil_training.planning.plan import plan_run
from vigil_training.runs.predict import predict_rows
from vigil_training.trainer.callbacks import MetricsCallback

NF4 = {
    "model__encoders__text__config__hidden_size": 64,
    "model__encoders__text__config__intermediate_size": 64,
    "model__encoders__text__lora": {"rank": 2},
    "model__encoders__text__frozen_dtype": "nf4",
    "training__precision": "bf16",
    "training__accelerator": "cuda",
}


def test_frozen_dtype_is_stored_and_converted_exactly(make_recipe, train, tmp_path):
    frozen = {"model__encoders__text__frozen": 2, "model__encoders__text__frozen_dtype": "bf16"}
    run = train(make_recipe(training__epochs=1, **frozen), tmp_path / "run")
    reader, model = CheckpointReader(run.checkpoint("last")), run.model("last").state_dict()
    halved = {name for name, entry in reader.manifest.inventory.items() if entry.dtype == "bfloat16"}
    assert halved == {n for n in model if n.startswith("encoders.text") and ".layer.1." not in n}
    assert all(reader.read_full("weight", name).dtype == torch.bfloat16 for name in halved)
    assert {value.dtype for value in model.values() if value.is_floating_point()} == {torch.float32}
    consolidate(run.checkpoint("last"), tmp_path / "weights.safetensors")
    written = read_consolidated(tmp_path / "weights.safetensors")
    for name in halved:
        torch.testing.assert_close(model[name], reader.read_full("weight", name).float(), rtol=0, atol=0)
        torch.testing.assert_close(written[name], reader.read_full("weight", name), rtol=0, atol=0)

    # The float32 model that is exported decides as the one in training, whose weights are halved.
    dataset = Dataset(run.recipe.data.dataset)
    predicted = predict_rows(run, dataset, dataset.rows("validation"), checkpoint="last")
    line = next(x for x in map(json.loads, run.metrics.read_text().splitlines()) if "validation/ap/cat" in x)
    known = predicted.targets_NL[:, 0] == predicted.targets_NL[:, 0]
    targets, logits = predicted.targets_NL[known, 0], predicted.logits_NL[known, 0].astype("float64")
    assert line["validation/ap/cat"] == pytest.approx(average_precision_score(targets, logits))


def test_plan_run_counts_frozen_weights_in_bf16(make_recipe):
    rows = {}
    for dtype in ("fp32", "bf16"):
        recipe = make_recipe(model__encoders__text__frozen=True, model__encoders__text__frozen_dtype=dtype)
        rows[dtype] = {row.name: row.state.weights for row in plan_run(recipe).rows}
    from vigil_modeling.safety_model import build_model

    text = build_model(recipe.model, recipe.inputs, recipe.taxonomy).encoder("text")
    saved = 2 * sum(p.numel() for p in text.parameters())
    assert {name: rows["fp32"][name] - rows["bf16"][name] for name in rows["fp32"]} == {
        "single": saved,
        "DDP": saved,
        "ZeRO-1": saved,
        "ZeRO-2": saved,
        "ZeRO-3": 0,
        "FSDP2": 0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "frozen_dtype: nothing is frozen; set frozen or lora"),
        (
            {"model__encoders__text__frozen": True, "strategy": {"kind": "deepspeed", "stage": 3}},
            "model.encoders.text.frozen_dtype: strategy.stage 3 shards frozen weights already",
        ),
        ({"model__encoders__text__lora": {}}, "frozen_dtype: with lora, fp32 copies would be kept for the backward pass"),
        (
            NF4 | {"training__accelerator": "auto"},
            "frozen_dtype: nf4 needs a GPU, for bitsandbytes; set training.accelerator to cuda",
        ),
        (NF4 | {"training__precision": "fp32"}, "frozen_dtype: nf4 computes in bf16; set training.precision to bf16"),
        (
            NF4 | {"strategy": {"kind": "deepspeed", "stage": 2}},
            "frozen_dtype: nf4 is not tried with deepspeed; take strategy single",
        ),
        (NF4 | {"strategy": {"kind": "fsdp2"}}, "frozen_dtype: strategy fsdp2 shards frozen weights already"),
    ],
)
def test_recipe_refuses_frozen_dtype_without_use(changes, message, make_recipe):
    with pytest.raises(ValueError, match=message):
        make_recipe(**{"model__encoders__text__frozen_dtype": "bf16", **changes})


def test_nf4_is_refused_on_a_machine_without_gpus(make_recipe, train, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"training\.accelerator: cuda, but this machine has 0 GPUs"):
        train(make_recipe(**NF4), tmp_path / "run")


def test_nf4_trains_adapters_and_resumes_bitwise(make_recipe, train, assert_same_run, monkeypatch, tmp_path):
    """On the CPU, whose kernels give the same values: what checkpoints hold, and the model of the run."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("vigil_training.distributed.session.choose_device", lambda recipe, world: torch.device("cpu"))
    recipe = make_recipe(training__max_steps=4, checkpoint__every_steps=1, **NF4)
    run = train(recipe, tmp_path / "run")
    reader, model = CheckpointReader(run.checkpoint("last")), run.model("last").state_dict()
    frozen = {name for name, entry in reader.manifest.inventory.items() if name.startswith("encoders.text") and not entry.trained}
    linear = {name for name in frozen if name.endswith("base_layer.weight")}
    assert linear
    for name in frozen:
        stored = reader.read_full("weight", name)
        assert stored.dtype == torch.bfloat16
        torch.testing.assert_close(model[name], stored.float(), rtol=0, atol=0)
    for name in linear:
        assert len(model[name].flatten()[:64].unique()) <= 16
    record = MetricsCallback.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):
        record(self, trainer, *rest)
        if trainer.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricsCallback, "on_train_batch_end", on_train_batch_end)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "resumed")
    monkeypatch.setattr(MetricsCallback, "on_train_batch_end", record)
    resumed = train(recipe, tmp_path / "resumed")
    assert "resuming" in resumed.log.read_text()
    assert_same_run(tmp_path / "run", tmp_path / "resumed")


def test_plan_run_counts_frozen_weights_in_4_bits(make_recipe):
    rows = {}
    for dtype in ("fp32", "nf4"):
        recipe = make_recipe(**{**NF4, "model__encoders__text__frozen_dtype": dtype})
        rows[dtype] = {row.name: row.state.weights for row in plan_run(recipe).rows}
    from vigil_modeling.encoders.frozen_storage import is_quantized_by_nf4
    from vigil_modeling.safety_model import build_model

    text = build_model(recipe.model, recipe.inputs, recipe.taxonomy).encoder("text")
    frozen = sum(p.numel() for p in text.parameters() if not p.requires_grad)
    linear = sum(module.weight.numel() for module in text.modules() if is_quantized_by_nf4(module))
    assert linear > frozen / 2
    saved = {name: rows["fp32"][name] - rows["nf4"][name] for name in rows["fp32"]}
    assert saved["single"] == saved["DDP"] == 2 * (frozen - linear) + 3.4375 * linear
    assert {saved[name] for name in saved if name not in {"single", "DDP"}} == {0}
