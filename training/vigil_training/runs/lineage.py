"""Lineage of runs and checkpoints: the same description is recorded when a run starts and read from its folder later.

No torch is imported here, so that an erasure can ask any folder what its run has seen.
"""

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, sha256_file, sha256_json
from vigil_data.lineage import Event, Input, Node, identify, record
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import read_recipe
from vigil_training.runs.run import RUN_ID, Run, recipe_digest


def record_run(run: Run) -> None:
    """Record the start of a run: its recipe and code, and the data and weights that it starts from."""
    event = describe_run(run.path)
    record(event.node, event.inputs)


def record_checkpoint(run: Run, path: Path) -> Node:
    """Record that a checkpoint of a run is used, and return it; the run is recorded, too: it may be of another workspace."""
    made = describe_run(run.path)
    record(made.node, made.inputs)
    node = Node("checkpoint", sha256_file(path / "manifest.json"), f"{run.path.name} {path.name}", str(path.resolve()))
    record(node, [made.node.as_input("run")])
    return node


def run_digest(folder: StrPath) -> str:
    """Return the id of a run; one that follows from its path if the folder has none, or no longer exists."""
    file = Path(folder) / RUN_ID
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    return sha256(str(Path(folder).resolve()).encode()).hexdigest()[:8]


def describe_run(folder: StrPath) -> Event:
    """Return the event of a run from its folder.

    Raises:
        UserError: if its recipe or its environment cannot be read.
    """
    folder = Path(folder)
    return describe_training(
        _read_json(folder / "environment.json"),
        folder / "resolved.yaml",
        digest=run_digest(folder),
        path=str(folder.resolve()),
    )


def describe_training(environment: Mapping[str, Any], recipe: Path, *, digest: str, path: str) -> Event:
    """Return the event of a run from what it, or its bundle, states of its start.

    Args:
        environment: ``dataset``, and if known ``git``, ``init_from``, ``distillation`` and ``soup``, as in environment.json.
        recipe: file of the resolved recipe.
        digest: id of the run.
        path: folder of the run.

    Raises:
        UserError: if the recipe cannot be read, or no dataset is named.
    """
    facts: dict[str, Any] = {}
    try:
        resolved = read_recipe(recipe)
    except UserError as error:  # what it was trained on is known, but not which of the items
        facts["problem"] = error.lines[0]
    else:
        facts = _recipe_facts(resolved)
    try:
        inputs = [_dataset(environment["dataset"]), *_weights(environment)]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: does not state the dataset that it was trained on") from None
    if commit := (environment.get("git") or {}).get("commit"):
        facts |= {"commit": commit, "dirty": bool(environment["git"].get("dirty"))}
    return Event("", "", "", Node("run", digest, Path(path).name, path, facts), tuple(inputs))


def _recipe_facts(recipe: Recipe) -> dict[str, Any]:
    data = recipe.data
    return {
        "recipe": recipe.name,
        "recipe_digest": recipe_digest(recipe),
        "taxonomy": f"{recipe.taxonomy.name} version {recipe.taxonomy.version}",
        "train": data.train,
        "validation": data.validation,
        "where": data.where,
    }


def _dataset(facts: Mapping[str, Any]) -> Input:
    """Return the dataset of a run; a run of an earlier time does not state its digest."""
    path, version = facts["path"], facts["version"]
    digest = facts.get("digest") or _digest_of_version(path, version) or sha256_json([path, version])
    return Input("dataset", digest, "data", Path(path).name, path, {"version": version})


def _digest_of_version(path: str, version: int | None) -> str | None:
    from vigil_data.dataset.dataset import Dataset

    try:
        return Dataset(Path(path), version).digest
    except UserError:
        return None


def _weights(environment: Mapping[str, Any]) -> Iterator[Input]:
    """Yield the models that a run starts or learns from."""
    for start in environment.get("init_from") or ():
        path = Path(start["path"])
        kind = "bundle" if start["kind"] == "bundle" else "checkpoint"
        yield Input(kind, start["sha256"], "weights", str(start.get("checkpoint") or path.name))
        if kind == "checkpoint":
            yield _run(path if start["kind"] == "run" else path.parent.parent, "weights")
    teacher, soup = (environment.get(name) for name in ("distillation", "soup"))
    if teacher and teacher["kind"] == "run":
        yield _run(Path(teacher["teacher"]), "teacher")
    elif teacher:
        path = Path(teacher["teacher"])
        kind, digest = identify(path) or (teacher["kind"], teacher["sha256"])
        yield Input(kind, digest, "teacher", path.name, str(path.resolve()))
    if soup:
        yield _run(Path(soup["run"]), "weights")


def _run(folder: Path, role: str) -> Input:
    return Input("run", run_digest(folder), role, folder.name, str(folder.resolve()))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{file}: missing or not JSON") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: not a JSON object")
    return value
