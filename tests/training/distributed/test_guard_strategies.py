"""A guard under every strategy of several ranks: the same losses as DDP, and the encoder of pictures where a rank has none."""

from pathlib import Path

import numpy as np
import pytest

from vigil_training.runs.run import Run

from .test_fsdp2 import launch, numbers

STRATEGIES = {
    "ddp": {"kind": "ddp"},
    "fsdp2": {"kind": "fsdp2"},
    "zero-3": {"kind": "deepspeed", "stage": 3},
    "zero-2": {"kind": "deepspeed", "stage": 2},
}
STEPS = 4


@pytest.fixture(scope="module")
def ran(make_guard_recipe, tmp_path_factory) -> Path:
    """Fit a guard under each strategy on two ranks, in two starts of the processes."""
    folder = tmp_path_factory.mktemp("guards")
    batch = {"budget": 250, "pool": 4, "cost": {"token": 1, "character": 0, "image": 1}}
    fits = []
    for name, strategy in STRATEGIES.items():
        recipe = make_guard_recipe(
            name=name, strategy={**strategy, "devices": 2}, training__max_steps=STEPS, training__epochs=9, data__batch=batch
        )
        fits.append({"recipe": recipe.model_dump(mode="json"), "run": str(folder / name)})
    for start in (fits[:-1], fits[-1:]):  # DeepSpeed can be set up once in a process
        launch(start, folder)
    return folder


@pytest.mark.parametrize("name", ["fsdp2", "zero-2", "zero-3"])
def test_guard_has_the_losses_and_norms_of_ddp(ran, name):
    for key, tolerance in (("train/loss", 1e-4), ("train/gradient_norm", 1e-3), ("validation/loss", 1e-4)):
        expected = numbers(ran, "ddp", key)
        assert expected
        np.testing.assert_allclose(numbers(ran, name, key), expected, rtol=tolerance, err_msg=key)


def test_guard_under_fsdp2_shares_its_weights(ran):
    sizes = [file.stat().st_size for file in sorted((ran / "fsdp2" / "checkpoints").glob("*/rank-*.safetensors"))]
    assert max(sizes) < 1.3 * min(sizes)


def test_guard_orders_are_decided_once_for_all_ranks(ran):
    orders = {Run(ran / name).recipe.model.prompt.order for name in STRATEGIES}
    assert orders == {"policy_first"}
