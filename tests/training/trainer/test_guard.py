"""A guard's run: trained, resumed and planned as any other model's."""

import numpy as np
import pytest
import yaml

from vigil_data.errors import UserError
from vigil_training.checkpoint.reader import CheckpointReader
from vigil_training.runs.run import check_run


def order_of(run):
    return yaml.safe_load(run.resolved.read_text())["model"]["prompt"]["order"]


def test_guard_trains_and_records_the_order_of_its_prompts(trained_guard, make_guard_recipe):
    assert trained_guard.finished
    assert make_guard_recipe().model.prompt.order == "auto"
    assert (
        trained_guard.model().pieces.order == order_of(trained_guard) == "policy_first"
    )  # texts of 2 to 12 words, policies of 40 tokens
    assert "prompts: policy first, up to 256 tokens" in trained_guard.log.read_text()


def test_guard_with_long_items_and_short_policies_reads_the_item_first(make_guard_recipe, material, tmp_path):
    from vigil_data.dataset.dataset import write
    from vigil_data.items import Item
    from vigil_training.runs.prompt_order import decide_prompt_order

    targets = {"cat": 1.0, "bright": 0.0}
    write(tmp_path / "long", [Item(f"{n}", ("red cat " * 40,), (), (), targets, {"split": "train"}) for n in range(20)])
    labels = {label: {"definition": label} for label in targets}
    taxonomy = {"name": "short", "heads": {"all": {"labels": labels}}}
    prompt = {"max_tokens": 512, "row_tokens": 512}
    recipe = make_guard_recipe(data__dataset=str(tmp_path / "long"), taxonomy=taxonomy, model__prompt=prompt)
    decided = decide_prompt_order(recipe)
    assert decided.model.prompt.order == "item_first"
    assert decide_prompt_order(decided) is decided


def test_decide_prompt_order_counts_the_soft_tokens_of_pictures(make_guard_recipe, tmp_path):
    from tiny_run import picture

    from vigil_data.dataset.dataset import write
    from vigil_data.items import Item
    from vigil_training.runs.prompt_order import decide_prompt_order

    targets, pictures = {"cat": 1.0, "bright": 0.0}, tuple(picture(np.random.default_rng(n), True) for n in range(4))
    write(tmp_path / "pictures", [Item(f"{n}", ("red cat",), pictures, (), targets, {"split": "train"}) for n in range(20)])
    taxonomy = {"name": "short", "heads": {"all": {"labels": {label: {"definition": label} for label in targets}}}}
    orders = {}
    for pool in ("average", "none"):  # one token of a picture, or five
        image = {"name": "test_vit", "weights": {"kind": "random"}, "pool": pool, "options": {"img_size": 16, "patch_size": 8}}
        recipe = make_guard_recipe(data__dataset=str(tmp_path / "pictures"), taxonomy=taxonomy, model__encoders__image=image)
        orders[pool] = decide_prompt_order(recipe).model.prompt.order
    assert orders == {"average": "policy_first", "none": "item_first"}


@pytest.mark.parametrize(
    "changes",
    [
        {"model__encoders__text__lora": {"rank": 2}, "training__ema": {"decay": 0.9}, "training__precision": "bf16"},
        {"training__activation_checkpointing": True, "model__encoders__text__frozen": 1},
    ],
)
def test_guard_resumes_bitwise(changes, make_guard_recipe, train, train_with_a_stop, assert_same_run, tmp_path):
    recipe = make_guard_recipe(training__max_steps=5, checkpoint__every_steps=1, **changes)
    train(recipe, tmp_path / "undisturbed")
    resumed = train_with_a_stop(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "undisturbed", tmp_path / "run")
    if "model__encoders__text__lora" in changes:
        reader = CheckpointReader(resumed.checkpoint("last"))
        trained = {name for name, entry in reader.manifest.inventory.items() if entry.trained and ".text." in name}
        assert trained
        assert all(".lora_" in name for name in trained)


def test_guard_keeps_the_order_it_began_with(trained_guard, make_guard_recipe):
    assert check_run(make_guard_recipe(), trained_guard.path)  # auto is what the run decided
    prompt = {"max_tokens": 256, "row_tokens": 256}
    assert check_run(make_guard_recipe(model__prompt={**prompt, "order": "policy_first"}), trained_guard.path)
    with pytest.raises(UserError, match=r"model.prompt.order: the run has \"policy_first\", the recipe \"item_first\""):
        check_run(make_guard_recipe(model__prompt={**prompt, "order": "item_first"}), trained_guard.path)
