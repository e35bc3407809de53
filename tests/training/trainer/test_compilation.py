"""``training.compile``: a number of graphs that does not depend on the batches, the numbers of eager training, bitwise resume."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from vigil_data.errors import UserError
from vigil_data.loading.batch import Batch, Segments
from vigil_modeling import multimodal_model
from vigil_modeling.safety_model import build_model
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.requirements import check_installed
from vigil_training.recipe.resolve import resolve_recipe
from vigil_training.runs.run import Run
from vigil_training.trainer.callbacks import MetricsCallback
from vigil_training.trainer.compilation import check_compiler

TOKENS = 90


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Graphs in the order in which they are compiled, by a backend that runs them as they are."""
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        del inputs
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(multimodal_model, "COMPILER_BACKEND", backend)
    return compiled


def changes_of(make_recipe: Callable[..., Recipe], positions: int = 32) -> dict[str, Any]:
    """No dropout, whose random numbers compiled graphs draw in their own way."""
    text = make_recipe().model.encoders.text
    assert text is not None
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": positions}
    return {"model__dropout": 0.0, "model__encoders__text__config": {**text.config, **still}}


def make_batch(texts: int, tokens: int, images: int) -> Batch:
    random = torch.Generator().manual_seed(1000 * texts + tokens)
    mask = (torch.arange(tokens)[None] < torch.randint(2, tokens + 1, (texts, 1), generator=random)).long()
    ids = torch.randint(4, 14, (texts, tokens), generator=random) * mask
    pixels = torch.randint(0, 255, (images, 3, 16, 16), dtype=torch.uint8, generator=random)
    inputs = {"text": {"input_ids": ids, "attention_mask": mask}, "image": {"pixels": pixels}}
    segments = {
        modality: Segments(torch.arange(count), inputs[modality], torch.zeros(count, dtype=torch.int64), torch.zeros(count, 2))
        for modality, count in (("text", texts), ("image", images))
    }
    items = max(texts, images)
    return Batch(tuple(map(str, range(items))), {m: s for m, s in segments.items() if len(s.item)}, torch.zeros(items, 2))  # type: ignore[misc]


def test_compile_encoders_compiles_one_graph_for_batches_of_all_shapes(
    make_recipe: Callable[..., Recipe], material: Path, graphs: list[torch.fx.GraphModule]
) -> None:
    tokenizer = {"kind": "local", "path": str(material / "tokenizer.json")}
    inputs = {"tokenizer": tokenizer, "max_tokens": TOKENS, "overlap": 2}
    recipe = make_recipe(inputs__text=inputs, **changes_of(make_recipe, 96))
    torch.manual_seed(0)
    eager = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    compiled = build_model(recipe.model, recipe.inputs, recipe.taxonomy)
    compiled.load_state_dict(eager.state_dict())
    compiled.compile_encoders(TOKENS)
    for batch in compiled.compiler_batches():
        compiled(batch)
    assert len(graphs) == 2  # one for each encoder
    shapes = random.Random(0)
    for _ in range(12):
        batch = make_batch(shapes.choice([0, 1, 2, 5, 20]), shapes.choice([2, 17, 33, 88, TOKENS]), shapes.choice([1, 2, 7]))
        results = []
        for model in (eager, compiled):
            model.zero_grad()
            logits_NL = model(batch, touch_all=True).logits_NL
            logits_NL.sum().backward()
            results.append((logits_NL, [p.grad for p in model.parameters()]))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=1e-5)
        for found, expected in zip(results[1][1], results[0][1], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    compiled.eval()
    assert torch.equal(compiled(batch).logits_NL, eager.eval()(batch).logits_NL)
    assert len(graphs) == 2


def test_fit_recipe_compiled_has_the_losses_of_eager_and_resumes_bitwise(
    make_recipe: Callable[..., Recipe],
    train: Callable[[Recipe, Path], Run],
    assert_same_run: Callable[[Path, Path], None],
    graphs: list[torch.fx.GraphModule],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("vigil_training.trainer.callbacks.metrics.LOG_EVERY_N_STEPS", 1)
    changes = {**changes_of(make_recipe), "training__epochs": 2}
    recipe = make_recipe(training__compile=True, **changes)
    train(make_recipe(**changes), tmp_path / "eager")
    assert not graphs
    train(recipe, tmp_path / "compiled")
    assert len(graphs) == 2
    losses = [
        [json.loads(line).get("train/loss", 0.0) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("eager", "compiled")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

    class Stop(Exception):
        pass

    record = MetricsCallback.on_train_batch_end

    def stopping(self: Any, trainer: Any, *rest: Any) -> None:
        record(self, trainer, *rest)
        if trainer.global_step == 5:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(MetricsCallback, "on_train_batch_end", stopping)
        with pytest.raises(Stop):
            train(recipe, tmp_path / "resumed")
    train(recipe, tmp_path / "resumed")
    assert_same_run(tmp_path / "compiled", tmp_path / "resumed")


def test_fit_recipe_compiles_under_ddp(
    make_recipe: Callable[..., Recipe],
    train: Callable[[Recipe, Path], Run],
    graphs: list[torch.fx.GraphModule],
    tmp_path: Path,
) -> None:
    changes = {**changes_of(make_recipe), "training__max_steps": 3, "strategy": {"kind": "ddp"}}
    eager = train(make_recipe(**changes), tmp_path / "eager")
    compiled = train(make_recipe(training__compile=True, **changes), tmp_path / "compiled")
    assert len(graphs) == 2
    weights = [run.model("last").state_dict() for run in (eager, compiled)]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(("strategy", "name"), [({"kind": "deepspeed", "stage": 3}, "ZeRO-3"), ({"kind": "fsdp2"}, "FSDP2")])
def test_recipe_refuses_compile_where_weights_are_gathered(
    make_recipe: Callable[..., Recipe], strategy: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValidationError, match=rf"training\.compile: {name} gathers weights within the encoders"):
        make_recipe(training__compile=True, strategy={**strategy, "devices": 2})
    make_recipe(training__compile=True, strategy={"kind": "deepspeed", "stage": 2, "devices": 2})


def test_compile_needs_a_compiler(make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    resolved = resolve_recipe(make_recipe(training__compile=True, training__accelerator="cpu"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "g++").touch(0o755)
    check_installed(resolved)
    check_compiler()
    (tmp_path / "g++").unlink()
    with pytest.raises(UserError, match=r"training\.compile: g\+\+ is not on the PATH"):
        check_installed(resolved)
    with pytest.raises(UserError, match=r"g\+\+ is not on the PATH of this machine"):
        check_compiler()
