"""Warm start: a model's first weights from trained runs, checkpoints or bundles, with labels matched by name.

A label that both models have keeps its rows in the fusion and in its head, so that with the same encoders, projections and fusion
its head's output for an item is the same as before. A new label keeps the random weights that the model was built with.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from vigil_data.errors import UserError
from vigil_data.filesystem import sha256_file
from vigil_data.items import MODALITIES
from vigil_data.taxonomy import Taxonomy
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.specs import Lora
from vigil_modeling.weights import mismatch
from vigil_training.checkpoint.manifest import MANIFEST, verify_checkpoint
from vigil_training.checkpoint.pruning import prune_feed_forward
from vigil_training.checkpoint.reader import CheckpointReader
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.specs import InitFrom
from vigil_training.runs.init_from import TORCHSCRIPT, InitSource, find_differences, find_source
from vigil_training.runs.run import Run

log = logging.getLogger("vigil.init_from")

HEADS = re.compile(r"((?:experts\.\w+\.)?heads\.)heads\.(\d+)\.(.*)")
"""Tensors of heads, also of auxiliary ones: what is before, the number in the order of the taxonomy, what is after."""


@dataclass
class SourceWeights:
    """Weights of a trained model.

    Attributes:
        shapes: name of each tensor in ``MultimodalModel.state_dict()`` to its shape.
        read: reads one of them.
        lora: modality to the adapters in its encoder; none in a bundle, whose export merged them.
        facts: where they come from, for environment.json.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    lora: Mapping[str, Lora | None]
    facts: dict[str, Any]


@dataclass
class LabelMatch:
    """Labels of a model and of the one that its weights come from.

    Attributes:
        source_head: index of each head to the index of the head whose weights it takes; ``None`` for fresh ones.
        kept: labels whose rows are taken.
        moved: labels whose head has another projection now, so that their row in the head is fresh.
        new: labels that the source lacks.
        dropped: labels of the source alone.
    """

    source_head: list[int | None]
    kept: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def warm_start(model: MultimodalModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Load the weights that a recipe's ``init_from`` names into a model, and log what was and what was not loaded.

    Args:
        model: the recipe's model, with its initial weights, which new labels and modalities keep.
        recipe: has ``init_from``.

    Returns:
        For each source where its weights come from, and which tensors were loaded, for environment.json.

    Raises:
        UserError: if a source is missing or damaged, or its tensors do not fit; the message names them.
    """
    fresh, reports = set(model.state_dict()), []
    for spec in recipe.init_from or ():
        loaded, report = _load(model, recipe, spec)
        fresh -= loaded
        reports.append(report)
        _log(report)
    unloaded = _by_group(fresh, partial(_canonical, taxonomy=recipe.taxonomy))
    _log_tensors("not loaded, as initialized", unloaded)
    return [{**report, "fresh": unloaded} for report in reports]


def _load(model: MultimodalModel, recipe: Recipe, spec: InitFrom) -> tuple[set[str], dict[str, Any]]:
    """Load the weights of one source; return the names of the tensors, and its report."""
    source = find_source(spec)
    if problems := list(find_differences(recipe, source, spec)):
        raise UserError(*problems)
    weights = _read_source(source, spec.checkpoint)
    match = match_labels(recipe.taxonomy, source.taxonomy)
    loaded, used = _match_tensors(model, recipe, spec, source, weights, match)
    ours, theirs = (partial(_canonical, taxonomy=each.taxonomy) for each in (recipe, source))
    absent = [part for part in spec.parts if not any(_is_asked(ours(name), (part,)) for name in loaded)]
    if absent or not loaded:
        has = ", ".join(sorted({_group(theirs(name)) for name in weights.shapes}))
        raise UserError(
            f"init_from: {source.path}: has no {', '.join(absent) or 'part of this model'}; its parts are {has}; "
            "change init_from.parts"
        )
    model.load_state_dict(loaded, strict=False)
    counts = Counter(_group(ours(name)) for name in loaded)
    constants = {name for name, _ in model.named_buffers()}  # TorchScript stores those that no state_dict() has, too.
    report = {
        **weights.facts,
        "parts": list(spec.parts),
        "loaded": dict(sorted(counts.items())),
        "unused": _by_group(weights.shapes.keys() - used - constants, theirs),
    }
    if loaded.keys() & model.label_rows():
        report["labels"] = {kind: getattr(match, kind) for kind in ("kept", "moved", "new", "dropped")}
    return set(loaded), report


def _match_tensors(  # noqa: PLR0917 (two models)
    model: MultimodalModel,
    recipe: Recipe,
    spec: InitFrom,
    source: InitSource,
    weights: SourceWeights,
    match: LabelMatch,
) -> tuple[dict[str, Tensor], set[str]]:
    """Return the tensors to load, and the names of those of the source that they were made of.

    Raises:
        UserError: if a part that both models have lacks a tensor in the source, or differs in the shape of one.
    """
    rows = model.label_rows()
    encoders = {str(m): _encoder_tensors(m, weights, getattr(recipe.model.encoders, m)) for m in model.modalities}
    groups = {_group(_canonical(name, source.taxonomy)) for name in weights.shapes}
    loaded: dict[str, Tensor] = {}
    used: set[str] = set()
    missing: list[str] = []
    differing: dict[str, Tensor] = {}
    ours = model.state_dict()
    for name, tensor in ours.items():
        canonical = _canonical(name, recipe.taxonomy)
        theirs = _source_name(name, match.source_head)
        if theirs is None or not _is_asked(canonical, spec.parts):
            continue
        group = _group(_canonical(theirs, source.taxonomy))
        found = encoders[canonical.split(".")[1]].get(name) if group.startswith("encoders.") else _reader(weights, theirs)
        if found is None:
            if group in groups and ".lora_" not in name:
                missing.append(name)
            continue
        names, value = found()
        if name in rows:
            value = _label_rows(name, tensor, value, recipe.taxonomy, source.taxonomy, match)
        used |= names
        (loaded if value.shape == tensor.shape else differing)[name] = value
    if spec.prune_feed_forward:
        encoders_alone = {name: value for name, value in differing.items() if name.startswith("encoders.")}
        loaded |= prune_feed_forward(encoders_alone, {name: ours[name].shape for name in encoders_alone})
    shapes = [f"{n} {list(v.shape)} -> {list(ours[n].shape)}" for n, v in differing.items() if n not in loaded]
    if missing or shapes:
        error = mismatch(f"init_from: {source.path}", missing=missing, shapes=shapes)
        raise UserError(f"{error}; name the parts to take in init_from.parts")
    return loaded, used


def _by_group(names: Iterable[str], canonical: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(_group(canonical(name)), []).append(name)
    return dict(sorted(found.items()))


def match_labels(taxonomy: Taxonomy, source: Taxonomy) -> LabelMatch:
    """Match the labels and heads of two taxonomies.

    A head takes the weights of the head of its name, if that has one of its labels or none of them is old, and otherwise of the
    head that has most of its old labels: heads may be renamed, split and reordered.
    """
    place = {head: i for i, head in enumerate(source.heads)}
    head_of = {label: name for name, head in source.heads.items() for label in head.labels}
    match = LabelMatch([])
    for name, head in taxonomy.heads.items():
        homes = Counter(head_of[label] for label in head.labels if label in head_of)
        same = name if name in place and (name in homes or not homes) else None
        chosen = same or (homes.most_common(1)[0][0] if homes else None)
        match.source_head.append(None if chosen is None else place[chosen])
        for label in head.labels:
            kind = match.new if label not in head_of else match.kept if head_of[label] == chosen else match.moved
            kind.append(label)
    match.dropped += [label for label in source.labels if label not in taxonomy.labels]
    return match


def _read_source(source: InitSource, checkpoint: str) -> SourceWeights:
    facts: dict[str, Any] = {"path": str(source.path), "kind": source.kind}
    if source.kind == "bundle":
        from vigil_serving.bundle.load import load_bundle
        from vigil_serving.parity.backends import load_torchscript

        bundle = load_bundle(source.path)
        # Every graph in the file holds the complete model; the fusion's is there whatever the modalities.
        prefix = "fusion.model."
        stored = load_torchscript(bundle.graph(TORCHSCRIPT)).state_dict()
        tensors = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return SourceWeights(shapes, tensors.__getitem__, {}, facts | {"sha256": bundle.digest})
    path = Run(source.path).checkpoint(checkpoint) if source.kind == "run" else source.path
    manifest = verify_checkpoint(path)
    reader, inventory = CheckpointReader(path), manifest.inventory
    facts |= {"checkpoint": path.name, "step": manifest.step, "sha256": sha256_file(path / MANIFEST)}
    assert source.recipe is not None
    encoders = {m: getattr(source.recipe.model.encoders, m) for m in MODALITIES}
    return SourceWeights(
        {name: entry.shape for name, entry in inventory.items()},
        lambda name: reader.weight(inventory[name].tied_to or name),
        {m: None if encoder is None else encoder.lora for m, encoder in encoders.items()},
        facts,
    )


Found = Callable[[], tuple[set[str], Tensor]]
"""Reads a tensor, and returns it with the names that it was made of."""


def _reader(weights: SourceWeights, name: str | None) -> Found | None:
    return None if name is None or name not in weights.shapes else lambda: ({name}, weights.read(name))


def _encoder_tensors(modality: str, weights: SourceWeights, spec: Any) -> dict[str, Found]:
    """Return the tensors of an encoder by their name in the new model.

    Equal adapters are taken as they are. Others are merged into the weights that they adapt; new adapters start as the identity.
    """
    theirs, ours = weights.lora.get(modality), spec.lora
    names = [name for name in weights.shapes if name.startswith(f"encoders.{modality}.")]
    if _adapts(theirs) == _adapts(ours):
        return {name: found for name in names if (found := _reader(weights, name)) is not None}
    merged = {name.replace(".base_layer.", "."): _merged(weights, name, theirs) for name in names if ".lora_" not in name}
    return merged | {".base_layer.".join(name.rsplit(".", 1)): found for name, found in merged.items()}


def _adapts(lora: Lora | None) -> tuple[int, int, tuple[str, ...]] | None:
    return None if lora is None else (lora.rank, lora.alpha, lora.targets)


def _merged(weights: SourceWeights, name: str, lora: Lora | None) -> Found:
    """Return a weight plus ``alpha / rank * B A`` (Hu et al. 2022, section 4.1) if it has an adapter."""
    layer, _, leaf = name.rpartition(".base_layer.")
    low, high = (f"{layer}.lora_{side}.default.weight" for side in "AB")
    if lora is None or leaf != "weight" or low not in weights.shapes:
        return lambda: ({name}, weights.read(name))
    scale = lora.alpha / lora.rank
    return lambda: ({name, low, high}, weights.read(name) + scale * (weights.read(high) @ weights.read(low)))


def _label_rows(  # noqa: PLR0917 (two sides of one tensor)
    name: str, own: Tensor, theirs: Tensor, taxonomy: Taxonomy, source: Taxonomy, match: LabelMatch
) -> Tensor:
    """Return a tensor with the rows of the labels that both have, and its own rows for the others."""
    if head := HEADS.fullmatch(name):
        index = int(head[2])
        chosen = match.source_head[index]
        assert chosen is not None
        labels, old = (list(list(t.heads.values())[i].labels) for t, i in ((taxonomy, index), (source, chosen)))
    else:
        labels, old = list(taxonomy.labels), list(source.labels)
    if theirs.shape[1:] != own.shape[1:]:
        return theirs
    both = [label for label in labels if label in old]
    rows = own.clone()
    rows[[labels.index(label) for label in both]] = theirs[[old.index(label) for label in both]].to(rows.dtype)
    return rows


def _canonical(name: str, taxonomy: Taxonomy) -> str:
    """Return a tensor's name with the name of its head in place of the head's number."""
    head = HEADS.fullmatch(name)
    return name if head is None else f"{head[1]}{list(taxonomy.heads)[int(head[2])]}.{head[3]}"


def _source_name(name: str, source_head: list[int | None]) -> str | None:
    head = HEADS.fullmatch(name)
    if head is None:
        return name
    chosen = source_head[int(head[2])]
    return None if chosen is None else f"{head[1]}heads.{chosen}.{head[3]}"


def _group(canonical: str) -> str:
    """Return the part that is loaded as a whole or not at all: ``encoders.text``, ``projections.text``, ``fusion``, a head."""
    first, second, *_ = canonical.split(".")
    return f"{first}.{second}" if first in ("encoders", "projections", "heads", "experts") else first


def _is_asked(canonical: str, parts: tuple[str, ...]) -> bool:
    return not parts or any(canonical == part or canonical.startswith(f"{part}.") for part in parts)


def _log(report: Mapping[str, Any]) -> None:
    where = f"{report['path']} {report.get('checkpoint', '')}".strip()
    listed = ", ".join(f"{group} ({count} tensors)" for group, count in report["loaded"].items())
    log.info("init_from %s: loaded %s", where, listed)
    _log_tensors("of the source, not used", report["unused"])
    names = {"kept": "kept", "moved": "moved to another head, whose row is new", "new": "new", "dropped": "dropped"}
    labels = report.get("labels", {})
    if labels:
        log.info("init_from: labels: %s", "; ".join(f"{names[k]}: {', '.join(v)}" for k, v in labels.items() if v))


def _log_tensors(what: str, groups: Mapping[str, Sequence[str]]) -> None:
    if groups:
        log.info("init_from: %s: %s", what, ", ".join(f"{group} ({len(names)})" for group, names in groups.items()))
