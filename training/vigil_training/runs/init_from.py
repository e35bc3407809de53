"""Sources of a warm start: the runs, checkpoints and bundles that a recipe's ``init_from`` names, checked without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vigil_data.errors import UserError
from vigil_data.items import MODALITIES
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.specs import ModelSpec
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import read_recipe
from vigil_training.recipe.specs import InitFrom
from vigil_training.runs.run import Run

TORCHSCRIPT = "torchscript"
"""Name of the graph of a bundle from which weights are read: the names of tensors survive in no ONNX graph."""


FEED_FORWARD_SIZES = ("intermediate_size", "encoder_ffn_dim")
"""Keys of an encoder's configuration for the width of its feed-forward layers."""


@dataclass(frozen=True, slots=True)
class InitSource:
    """A trained model.

    Attributes:
        kind: what the path names.
        path: the path.
        taxonomy: the model's labels.
        recipe: recipe of the model; ``None`` for a bundle whose recipe cannot be read here.
    """

    kind: Literal["run", "checkpoint", "bundle"]
    path: Path
    taxonomy: Taxonomy
    recipe: Recipe | None


def find_source(spec: InitFrom) -> InitSource:
    """Return the model that an entry of ``init_from`` names.

    Raises:
        UserError: if it is no run with a checkpoint, no checkpoint in a run, and no bundle with TorchScript.
    """
    path = Path(spec.path)
    if (path / "bundle.json").is_file():
        source = _bundle(path)
    elif (path / "resolved.yaml").is_file():
        run = Run(path)
        if not run.has_checkpoint:
            raise UserError(f"init_from: {path}: the run has no checkpoint yet")
        return InitSource("run", path, run.recipe.taxonomy, run.recipe)
    elif path.is_dir() and path.name.startswith("step-"):
        run_folder = path.resolve().parent.parent
        if not (run_folder / "resolved.yaml").is_file():
            raise UserError(
                f"init_from: {path}: a checkpoint without its run, whose resolved.yaml names the labels of its weights; "
                "keep it in the folder checkpoints of its run"
            )
        recipe = Run(run_folder).recipe
        source = InitSource("checkpoint", path, recipe.taxonomy, recipe)
    else:
        what = "is neither a run, nor a checkpoint, nor a bundle" if path.exists() else "does not exist"
        raise UserError(f"init_from: {path} {what}; name a run folder, a checkpoint such as runs/a/checkpoints/step-00000100, "
                        "or a bundle")  # fmt: skip
    if spec.checkpoint != "best":
        raise UserError(f"init_from.checkpoint: {path} is a {source.kind}, which has no others; leave this out")
    return source


def _bundle(path: Path) -> InitSource:
    from vigil_serving.bundle.load import load_bundle
    from vigil_serving.bundle.save import read_taxonomy

    if TORCHSCRIPT not in load_bundle(path, check_hashes=False).graphs:
        raise UserError(
            f"init_from: {path}: the bundle has no TorchScript, and ONNX keeps no names of weights; name the run that it was "
            "exported from, or export it with --formats onnx,torchscript"
        )
    try:
        recipe = read_recipe(path / "resolved.yaml")
    except UserError:
        recipe = None
    return InitSource("bundle", path, read_taxonomy(path), recipe)


def find_init_problems(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with a recipe's ``init_from``, as far as the two recipes show it; each line starts with its key."""
    for spec in recipe.init_from or ():
        try:
            source = find_source(spec)
        except UserError as error:
            yield from error.lines
        else:
            yield from find_differences(recipe, source, spec)


def find_differences(recipe: Recipe, source: InitSource, spec: InitFrom) -> Iterator[str]:
    """Yield what differs between the architectures of the parts that are taken, as far as the two recipes show it."""
    parts = spec.parts
    if source.recipe is None:
        return
    new, old = recipe.model, source.recipe.model
    where, remedy = f"init_from: {source.path}:", "make them equal, or name the parts to take in init_from.parts"
    pairs: list[tuple[str, Any, Any]] = []
    for modality in MODALITIES:
        name, ours, theirs = f"encoders.{modality}", getattr(new.encoders, modality), getattr(old.encoders, modality)
        if theirs is None and any(part == name or part.startswith(f"{name}.") for part in parts):
            yield f"{where} has no {name}; its encoders are of {', '.join(m for m in MODALITIES if getattr(old.encoders, m))}"
        elif ours is not None and theirs is not None and _is_taken(name, parts):
            pairs += [(f"model.{name}.{key}", getattr(theirs, key, None), getattr(ours, key, None)) for key in ("kind", "name")]
            configs = [getattr(each, "config", {}) for each in (theirs, ours)]
            free = {"num_hidden_layers", *(FEED_FORWARD_SIZES if spec.prune_feed_forward else ())}
            shared = [key for key in configs[0] if key in configs[1] and key not in free and "drop" not in key]
            pairs += [(f"model.{name}.config.{key}", configs[0][key], configs[1][key]) for key in shared]
    if new.kind != old.kind and any(_is_taken(name, parts) for name in ("projections", "fusion", "heads", "position", "answers")):
        yield f"{where} model.kind is {old.kind} there and {new.kind} here; name the encoders to take in init_from.parts"
    if isinstance(new, ModelSpec) and isinstance(old, ModelSpec):
        if any(_is_taken(name, parts) for name in ("projections", "fusion", "heads")):
            pairs.append(("model.width", old.width, new.width))
        if _is_taken("fusion", parts):
            keys = type(new.fusion).model_fields if new.fusion.kind == old.fusion.kind else ["kind"]
            pairs += [(f"model.fusion.{key}", getattr(old.fusion, key), getattr(new.fusion, key)) for key in keys]
    yield from (f"{where} {key} is {old} there and {new} here; {remedy}" for key, old, new in pairs if old != new)


def _is_taken(name: str, parts: tuple[str, ...]) -> bool:
    """Return whether any tensor of the module ``name`` is taken."""
    return not parts or any(f"{name}.".startswith(f"{part}.") or part.startswith(f"{name}.") for part in parts)
