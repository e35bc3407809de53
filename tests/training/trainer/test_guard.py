"""A guard's run: trained, resumed and evaluated as any other model's."""

import pytest
import yaml


@pytest.fixture(scope="module")
def guard(make_guard_recipe, train, tmp_path_factory):
    """A tiny guard, trained once; tests do not change it."""
    return train(make_guard_recipe(), tmp_path_factory.mktemp("guards") / "tiny")


def test_guard_trains_and_records_the_order_of_its_prompts(guard, make_guard_recipe):
    assert guard.finished
    recorded = yaml.safe_load(guard.resolved.read_text())["model"]["prompt"]["order"]
    assert recorded in ("policy_first", "item_first")
    assert guard.model().pieces.order == recorded
    assert make_guard_recipe().model.prompt.order == "auto"
