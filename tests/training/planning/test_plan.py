"""Planning: memory against what ranks hold, and steps against what a run does."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vigil_data.errors import UserError
from vigil_data.loading.loader import Request
from vigil_modeling.encoders.frozen_storage import is_quantized_by_nf4
from vigil_modeling.safety_model import build_model
from vigil_training.distributed.world import World
from vigil_training.planning.memory import Sharding, buffer_bytes, persistent_bytes, sharded, state_bytes
from vigil_training.planning.plan import plan_run
from vigil_training.planning.start import plan_start
from vigil_training.recipe.recipe import Recipe
from vigil_training.trainer.data_module import DataModule

REPOSITORY = Path(__file__).resolve().parents[3]
WEIGHTS = st.lists(st.tuples(st.integers(1, 5000), st.booleans()), max_size=30)
WORLDS = st.integers(1, 64)


def test_state_bytes_are_what_ranks_hold() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "rank_state.py"), "--ranks", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert [row["strategy"] for row in rows] == ["ddp", 1, 2, 3, "fsdp2"]
    for row in rows:
        for kind, measured in row["measured"].items():
            assert measured == pytest.approx(row["predicted"][kind], rel=0.05), (row["strategy"], kind)


@given(WEIGHTS, WORLDS)
def test_state_bytes_shrink_from_stage_to_stage(weights: list[tuple[int, bool]], world: int) -> None:
    one, two, three = (state_bytes(weights, stage, world) for stage in (1, 2, 3))
    slack = 4 * (world + 2 * len(weights) + 2)
    assert one == two
    assert three.weights <= two.weights + slack
    assert three.gradients <= two.gradients + slack
    assert three.total <= two.total + 5 * slack


@given(WEIGHTS, st.sampled_from([1, 2, 3]), WORLDS, st.integers(2, 4))
def test_state_bytes_shrink_with_the_number_of_ranks(
    weights: list[tuple[int, bool]], stage: Sharding, world: int, times: int
) -> None:
    few, many = state_bytes(weights, stage, world), state_bytes(weights, stage, world * times)
    assert many.optimizer <= few.optimizer
    assert many.masters <= few.masters


@given(WEIGHTS, st.sampled_from([1, 2, 3]), WORLDS)
def test_state_bytes_of_all_ranks_are_the_model_and_padding(weights: list[tuple[int, bool]], stage: Sharding, world: int) -> None:
    state, whole = state_bytes(weights, stage, world), state_bytes(weights, "ddp", world)
    padding = 4 * world * (2 if stage != 3 else len(weights))
    assert whole.optimizer <= state.optimizer * world <= whole.optimizer + 2 * padding
    assert whole.gradients <= state.masters * world <= whole.gradients + padding
    assert state.gradients * world >= whole.gradients
    if stage == 3:
        assert whole.weights <= state.weights * world <= whole.weights + padding
    else:
        assert whole.weights <= state.weights <= whole.weights + padding


@given(st.lists(st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.booleans()), max_size=20), WORLDS)
def test_sharded_weights_are_the_model_and_the_rows_that_some_ranks_lack(
    shapes: list[tuple[list[int], bool]], world: int
) -> None:
    shards = sharded([(tuple(shape), is_trained) for shape, is_trained in shapes], world)
    for (numel, is_trained), (shape, expected) in zip(shards, shapes, strict=True):
        largest = max(part.numel() for part in torch.empty(shape).chunk(world))
        assert (numel, is_trained) == (largest, expected)


def test_plan_run_shares_everything_under_fsdp2(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(strategy={"kind": "fsdp2", "devices": 2}, training__ema={})
    one, two = (next(row for row in plan_run(recipe, gpus=gpus).rows if row.chosen) for gpus in (1, 2))
    single = plan_run(recipe).rows[0]
    assert one.name == two.name == "FSDP2"
    assert one.state == single.state
    assert two.state.total == pytest.approx(one.state.total / 2, rel=0.05)
    assert two.buffers == one.buffers

    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy, load_weights=False)
    outside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoders."))
    assert two.buffers["gathered weights"] > 4 * outside


def test_state_bytes_count_a_split_gradient_on_both_ranks() -> None:
    assert state_bytes([(4, True), (8, True), (4, True)], 2, 2).gradients == 4 * 12
    assert state_bytes([(8, True), (8, True)], 2, 2).gradients == 4 * 8


def test_state_bytes_of_frozen_weights_are_the_weights() -> None:
    assert state_bytes([(100, False)], 2, 4).total == 400
    assert state_bytes([(100, False)], 3, 4).total == 100
    with pytest.raises(ValueError, match="world is 0"):
        state_bytes([], 1, 0)


@given(WEIGHTS, st.sampled_from(["ddp", 1, 2, 3]), WORLDS)
def test_state_bytes_of_an_average_are_half_of_the_moments(
    weights: list[tuple[int, bool]], strategy: Sharding, world: int
) -> None:
    plain, averaged = state_bytes(weights, strategy, world), state_bytes(weights, strategy, world, averaged=True)
    assert averaged.average == plain.optimizer / 2
    assert averaged.total == plain.total + averaged.average


def test_plan_run_counts_the_average(make_recipe: Callable[..., Recipe]) -> None:
    plain, averaged = (plan_run(make_recipe(training__ema=ema)).rows[0].state for ema in (None, {}))
    assert averaged.average == plain.gradients
    assert averaged.total == plain.total + plain.gradients


def test_persistent_bytes_stop_at_the_limit() -> None:
    assert persistent_bytes([10, 50, 5, 4], threshold=20, most=15) == 4 * 15


@pytest.mark.parametrize(
    ("stage", "accumulate", "elements"),
    [
        (1, 1, 100),  # too large for the bucket, and freed at the end of backward alone
        (2, 1, 38),  # joined for the step
        (1, 2, 152),  # whole until the last batch
        (2, 2, 114),  # of this batch and those of the last
    ],
)
def test_buffer_bytes_count_further_gradients(stage: Sharding, accumulate: int, elements: int) -> None:
    weights = [(100, True), (14, True), (38, True)]
    state = state_bytes(weights, stage, 4)
    zero = {"reduce_bucket_size": 50, "overlap_comm": True}
    allowed = buffer_bytes(weights, state, stage, zero, accumulate)
    assert allowed == {"reduce buckets": 4 * 100, "further gradients": 4 * elements}


@pytest.mark.parametrize(("max_steps", "steps"), [(None, 0), (1, 1)])
def test_plan_run_ends_within_an_epoch_at_max_steps(
    make_recipe: Callable[..., Recipe], max_steps: int | None, steps: int
) -> None:
    recipe = make_recipe(training__epochs=3, training__accumulate=2, training__max_steps=max_steps)
    data, epochs = DataModule(recipe, 1), plan_run(recipe).epochs
    assert epochs is not None
    assert epochs.run_steps == data.total_steps()
    planned = [plan.rows(step, 0) for plan in map(data.plan, range(3)) for step in range(plan.steps)]
    run = planned if max_steps is None else planned[: 2 * steps]
    assert epochs.run_batches == len(run)
    assert epochs.run_samples == sum(len(rows) for rows in run)


def test_plan_run_counts_the_steps_of_the_run(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(strategy={"kind": "deepspeed", "stage": 2, "devices": 2}, training__accumulate=2)
    report = plan_run(recipe, memory=1.0)
    data = DataModule(recipe, 1, World(0, 2, 0, 2))
    assert report.epochs is not None
    assert report.epochs.run_steps == data.total_steps()
    assert report.epochs.batches == data.plan(0).steps
    assert report.epochs.samples == len(data.train_rows)
    assert [row.name for row in report.rows if row.chosen] == ["ZeRO-2"]
    assert report.verdict.startswith("ZeRO-2 on 1 \N{MULTIPLICATION SIGN} 2 GPUs of 1 GiB needs ")
    assert "fits" in report.verdict


@pytest.mark.parametrize("max_steps", [None, 3])
def test_plan_start_is_that_of_plan_run(make_recipe: Callable[..., Recipe], max_steps: int | None) -> None:
    recipe = make_recipe(
        strategy={"kind": "deepspeed", "stage": 2, "devices": 2, "offload_optimizer": "cpu"},
        training__epochs=2,
        training__max_steps=max_steps,
        data__batch__cost={"token": 0.25, "item": 1.0},
    )
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy, load_weights=False)
    data = DataModule(recipe, 1, World(0, 2, 0, 2))
    started, planned = plan_start(recipe, model, data, data.epoch_ends(), 2), plan_run(recipe)
    assert planned.epochs is not None
    row = next(row for row in planned.rows if row.chosen)
    assert started["strategy"] == row.name == "ZeRO-2 with offload"
    assert started["memory"] == {**dataclasses.asdict(row.state), "buffers": sum(row.buffers.values()), "host": row.host}
    assert (started["parameters"], started["trained_parameters"]) == (planned.parameters, planned.trained)
    assert (started["steps"], started["items"], started["tokens"]) == (
        planned.epochs.run_steps,
        planned.epochs.samples,
        planned.epochs.tokens,
    )
    assert f"{started['tokens']:,} tokens of text," in planned.facts()[1]
    first = data.plan(0)
    batches = [data.reader[Request(data.train_rows[first.rows(step, rank)])] for step in range(first.steps) for rank in (0, 1)]
    masks = [batch.segments["text"].inputs["attention_mask"] for batch in batches if "text" in batch.segments]
    assert started["tokens"] == sum(int(mask.sum()) for mask in masks)
    assert started["epoch_ends"][0] == first.steps
    assert len(started["epoch_ends"]) == (2 if max_steps is None or max_steps > first.steps else 1)


def test_plan_start_counts_packed_weights_by_their_shapes(make_recipe: Callable[..., Recipe]) -> None:
    """Packed in 4 bits, weights are no parameters any more; what replaces them here, without bitsandbytes, has none either."""
    config = {"hidden_size": 64, "intermediate_size": 64}
    text = {"frozen_dtype": "nf4", "lora": {"rank": 2}} | {f"config__{key}": of for key, of in config.items()}
    keys: dict[str, Any] = {f"model__encoders__text__{key}": of for key, of in text.items()}
    recipe = make_recipe(**keys, training__precision="bf16", training__accelerator="cuda")
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy, load_weights=False)
    parents = [(parent, name) for parent in model.modules() for name, of in parent.named_children() if is_quantized_by_nf4(of)]
    assert parents
    for parent, name in parents:
        setattr(parent, name, nn.Identity())
    data = DataModule(recipe, 1, World(0, 1, 0, 1))
    started, planned = plan_start(recipe, model, data, data.epoch_ends(), 1), plan_run(recipe)
    row = next(row for row in planned.rows if row.chosen)
    assert started["memory"] == {**dataclasses.asdict(row.state), "buffers": sum(row.buffers.values()), "host": row.host}
    assert started["parameters"] == planned.parameters


def test_plan_run_has_the_activations_of_a_real_forward_pass(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    assert plan_run(recipe).rows[0].activations == pytest.approx(activations_of_a_forward_pass(recipe), rel=0.1)


def test_plan_run_needs_no_memory_for_a_transformer_over_a_decoder(make_guard_recipe: Callable[..., Recipe]) -> None:
    encoders = make_guard_recipe().model.encoders.model_dump(mode="json", exclude_none=True)
    recipe = make_guard_recipe(model={"encoders": encoders, "fusion": {"kind": "transformer", "layers": 1, "heads": 2}})
    report = plan_run(recipe)
    assert any("on tensors without memory" in note for note in report.notes)
    # Passages do not share rows and items have one mask: both depend on values.
    assert 1 < report.rows[0].activations / activations_of_a_forward_pass(recipe) < 2


def activations_of_a_forward_pass(recipe: Recipe) -> int:
    """Return the bytes that a forward pass of the most expensive batch keeps."""
    from vigil_data.dataset.dataset import Dataset
    from vigil_data.loading.sampler import costs

    data = DataModule(recipe, 1)
    priced = costs(Dataset(recipe.data.dataset).facts(data.train_rows), recipe.data.batch.cost, recipe.inputs)
    planned = data.plan(0)
    rows = max((planned.rows(step, 0) for step in range(planned.steps)), key=lambda batch: float(priced[batch].sum()))
    model = build_model(recipe.model, recipe.inputs, recipe.taxonomy, load_weights=False)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(data.reader[Request(data.train_rows[rows])])
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_plan_run_saves_less_with_activation_checkpointing(make_recipe: Callable[..., Recipe], precision: str) -> None:
    plain, again = (
        plan_run(make_recipe(training__precision=precision, training__activation_checkpointing=on)) for on in (False, True)
    )
    assert again.rows[0].activations < plain.rows[0].activations


def test_plan_run_moves_offloaded_state_to_the_host(make_recipe: Callable[..., Recipe]) -> None:
    report = plan_run(make_recipe(strategy={"kind": "deepspeed", "stage": 2, "devices": 2, "offload_optimizer": "cpu"}))
    plain = next(row for row in report.rows if row.name == "ZeRO-2")
    chosen = next(row for row in report.rows if row.chosen)
    assert chosen.name == "ZeRO-2 with offload"
    assert chosen.host == plain.state.optimizer + plain.state.masters
    assert chosen.total + chosen.host == plain.total


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `vigil plan` in this process and gives what it printed."""
    import typer

    from vigil.cli import plan

    def run(*arguments: object) -> str:
        app = typer.Typer()
        app.callback()(lambda: None)
        plan.register(app)
        app(["plan", *map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def file(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(make_recipe().model_dump_json())
    return path


def test_plan_command_prints_a_table_and_a_verdict(command: Callable[..., str], file: Path) -> None:
    shown = command(file, "--memory", "80")
    assert "ZeRO-3" in shown
    assert shown.splitlines()[-1].startswith("single on 1 GPU of 80 GiB needs ")
    assert shown.splitlines()[-1].endswith(": fits")
    assert "does not fit; nor does any other strategy" in command(file, "--memory", "0.00001")


def test_plan_command_plans_memory_without_a_dataset(command: Callable[..., str], file: Path, tmp_path: Path) -> None:
    absent = f"data.dataset={tmp_path / 'absent'}"
    said = json.loads(command(file, absent, "--nodes", 2, "--gpus", 4, "--json"))
    assert said["epochs"] is None
    assert (said["nodes"], said["gpus"], said["memory"]) == (2, 4, None)
    assert all(row["fits"] is None for row in said["rows"])
    assert any("no dataset" in note and "6 texts of 16 tokens, 6 images" in note for note in said["notes"])
    for row in said["rows"]:
        assert row["total"] == sum(row["state"].values()) + row["activations"] + sum(row["buffers"].values())


def test_plan_command_refuses_wrong_arguments(command: Callable[..., str], file: Path) -> None:
    with pytest.raises(UserError, match="--memory 0: give the GiB"):
        command(file, "--memory", 0)
    with pytest.raises(UserError, match="no_such"):
        command(file, "training.no_such=1")
    with pytest.raises(UserError, match="absent"):
        command(file.with_name("absent.yaml"))


def test_plan_run_shows_the_shares_of_weighted_sampling(make_recipe: Callable[..., Recipe]) -> None:
    sampling = {"by": "language", "weights": {"en": 3.0}, "items": 50}
    report = plan_run(make_recipe(data__sampling=sampling))
    assert report.epochs is not None
    assert report.epochs.samples == 50
    english = next(share for share in report.epochs.sampling if share.name == "language en")
    assert english.epoch == pytest.approx(3 * english.items / (3 * english.items + 1 - english.items))
    line = f"language en: {100 * english.items:.3g} % of the items, {100 * english.epoch:.3g} % of an epoch"
    assert line in report.facts()
    assert report.as_json()["epochs"]["sampling"][0]["name"] == "language de"
