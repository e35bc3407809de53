"""Promotion of a bundle: an alias such as ``models/champion`` points to another bundle, by evidence that is recorded.

The alias is a symbolic link that is replaced atomically. ``models/promotions.jsonl`` has one line for each promotion, with the
SHA-256 of the line before, so that an altered line is recognized.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

from vigil.workflows.release_gate import raise_on_regression
from vigil_data import json_fields
from vigil_data.errors import Failure, UserError
from vigil_data.filesystem import StrPath, locked, sha256_file, sha256_json, sync, write_failure, write_file
from vigil_data.lineage import Input, Node, record
from vigil_evaluation.comparison.results import ComparedModel, Comparison
from vigil_monitoring.experiments.results import ExperimentResult
from vigil_monitoring.results import read_result
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import load_bundle

RECORD = "promotions.jsonl"
LOCK = ".promotions.lock"
PENDING = ".promotion.pending"
"""The line of a promotion that has begun: one that was interrupted is completed by the next command."""


class NotPromotedError(Failure):
    """The evidence does not support the promotion."""


@dataclass(frozen=True, slots=True)
class PromotedBundle:
    """A bundle and the digest that it had.

    Attributes:
        path: its folder, absolute.
        digest: SHA-256 of its manifest.
    """

    path: str
    digest: str


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """A file on which a promotion rests.

    Attributes:
        file: its path, absolute.
        sha256: its hash at the time.
    """

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Promotion:
    """A line of the record.

    Attributes:
        time: when, ISO 8601, UTC.
        by: who.
        alias: name of the alias.
        bundle: the bundle that it points to from now on.
        previous: the bundle that it pointed to; ``None`` for the first.
        comparison: `vigil compare` of the two; ``None`` for the first, and for the way back.
        experiment: experiment with both; ``None`` without one.
        without_experiment: whether the promotion was made without an experiment on purpose.
        back: whether it is the return to the bundle before.
        line_before: SHA-256 of the line before; empty for the first line.
    """

    time: str
    by: str
    alias: str
    bundle: PromotedBundle
    previous: PromotedBundle | None
    comparison: EvidenceFile | None
    experiment: EvidenceFile | None
    without_experiment: bool
    back: bool
    line_before: str = ""


def promote(
    bundle: StrPath,
    models: StrPath,
    alias: str = "champion",
    *,
    by: str,
    comparison: StrPath | None = None,
    experiment: StrPath | None = None,
    without_comparison: bool = False,
    without_experiment: bool = False,
    public_key: StrPath | None = None,
) -> Promotion:
    """Let an alias point to a bundle that passed a comparison, and an experiment, with the bundle that it points to.

    Args:
        bundle: the bundle.
        models: folder of the aliases.
        alias: name of the alias.
        by: who promotes it, for the record.
        comparison: comparison.json of the two bundles, or its folder (default: the one within the bundle).
        experiment: result of `vigil monitor experiment` with the two bundles.
        without_comparison: promote the first bundle, for which there is nothing to compare.
        without_experiment: promote without an experiment.
        public_key: PEM file; the bundle must be signed by the holder of this key.

    Returns:
        The promotion; the recorded one if it was made before, so that a command may be repeated.

    Raises:
        UserError: if the bundle or the evidence was altered, or is about other bundles.
        RegressionError: if the comparison did not pass.
        NotPromotedError: if the verdict of the experiment is not ``promote``.
    """
    folder, path = Path(models), Path(bundle).resolve()
    digest = load_bundle(path, public_key=public_key).digest
    if not folder.exists() and not without_comparison:
        raise UserError(_no_champion(folder / alias, bundle))
    with _locked(folder):
        lines = _complete(folder)
        current = _current(folder / alias)
        last = next((promotion for promotion, _ in reversed(lines) if promotion.alias == alias), None)
        if current is not None and last is not None and current.digest == digest == last.bundle.digest:
            return last
        if current is None:
            if not without_comparison:
                raise UserError(_no_champion(folder / alias, bundle))
            evidence: dict[str, Any] = {"comparison": None, "experiment": None, "without_experiment": True}
        else:
            if without_comparison:
                raise UserError(f"{folder / alias} is {current.path}; --without-comparison is for the first {alias} only")
            if (experiment is None) != without_experiment:
                raise UserError("give --experiment FILE.json of `vigil monitor experiment`, or --without-experiment; not both")
            evidence = {
                "comparison": _check_comparison(path, comparison, digest, current, folder / alias),
                "experiment": None if experiment is None else _check_experiment(Path(experiment), digest, current),
                "without_experiment": without_experiment,
            }
        made = Promotion(_now(), by, alias, PromotedBundle(str(path), digest), current, **evidence, back=False)
        return _apply(folder, made, lines)


def promote_back(models: StrPath, alias: str = "champion", *, by: str) -> Promotion:
    """Let an alias point to the bundle before the current one again.

    Args:
        models: folder of the aliases.
        alias: name of the alias.
        by: who does it, for the record.

    Raises:
        UserError: if there is none, or it was altered since.
    """
    folder = Path(models)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; name the folder of the alias {alias} with --models")
    with _locked(folder):
        lines = _complete(folder)
        current, promoted = _current(folder / alias), _stack(promotion for promotion, _ in lines if promotion.alias == alias)
        if current is None or len(promoted) < 2:
            raise UserError(f"{folder / RECORD}: records no {alias} before the current one")
        if current.digest != promoted[-1].digest:
            raise UserError(
                f"{folder / alias}: is {current.path}, but {promoted[-1].path} was promoted last; promote a bundle by name"
            )
        before = promoted[:-1]
        digest = manifest.check_files(Path(before[-1].path))
        if digest != before[-1].digest:
            raise UserError(f"{before[-1].path}: is another bundle ({digest[:12]}) than was promoted ({before[-1].digest[:12]})")
        made = Promotion(_now(), by, alias, before[-1], current, None, None, without_experiment=False, back=True)
        return _apply(folder, made, lines)


def read_promotions(models: StrPath) -> list[Promotion]:
    """Return the promotions of a folder of models, the oldest first.

    Raises:
        UserError: if the record was altered.
    """
    return [promotion for promotion, _ in _read(Path(models))]


def _no_champion(alias: Path, bundle: StrPath) -> str:
    return (
        f"{alias}: there is no {alias.name} to compare {bundle} with; check --models, or promote the first one with "
        "--without-comparison"
    )


def _locked(folder: Path) -> AbstractContextManager[None]:
    return locked(folder / LOCK, f"{folder}: {{owner}} is promoting a bundle; try again when it is done")


def _read(folder: Path) -> list[tuple[Promotion, str]]:
    """Return each line of the record as promotion and text."""
    file, found, before = folder / RECORD, [], ""
    if not file.exists():
        return []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{file}:{number}"
        try:
            promotion: Promotion = json_fields.structure(Promotion, json.loads(line), where)
        except ValueError:
            raise UserError(f"{where}: is not JSON; restore the record from a copy") from None
        if promotion.line_before != before:
            raise UserError(f"{where}: does not follow the line before: the record was altered; restore it from a copy")
        before = sha256(line.encode()).hexdigest()
        found.append((promotion, line))
    return found


def _current(link: Path) -> PromotedBundle | None:
    """Return the bundle that an alias points to."""
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is a folder, not a link; move the bundle elsewhere, and promote it")
    if not link.is_symlink():
        return None
    target = link.resolve()
    return PromotedBundle(str(target), manifest.check_files(target))


def _stack(promotions: Iterable[Promotion]) -> list[PromotedBundle]:
    """Return the bundles from the first to the current one, without those that were taken back."""
    found: list[PromotedBundle] = []
    for promotion in promotions:
        if promotion.back:
            found.pop()
        else:
            if not found and promotion.previous is not None:
                found.append(promotion.previous)
            found.append(promotion.bundle)
    return found


def _check_comparison(bundle: Path, given: StrPath | None, digest: str, current: PromotedBundle, alias: Path) -> EvidenceFile:
    file = bundle / manifest.COMPARISON if given is None else Path(given)
    file = file / manifest.COMPARISON if file.is_dir() else file
    how = f"vigil compare {alias} {bundle} --to comparison"
    if not file.is_file():
        raise UserError(f"{file}: no such comparison; make one with `{how}`, and give --comparison comparison")
    content = _read_evidence(file)
    within = given is None  # the bundle's manifest covers its own comparison
    stated = content.pop("digest", None)
    if not within and stated != sha256_json(content):
        raise UserError(f"{file}: was altered since `vigil compare` wrote it; compare again: {how}")
    found: Comparison = json_fields.structure(Comparison, content, str(file))
    sides: list[tuple[str, ComparedModel, str]] = [("champion", found.champion, current.digest)]
    if not within:
        sides.append(("challenger", found.challenger, digest))
    for side, model, wanted in sides:
        has = model.facts.get("digest")
        if has != wanted:
            what = f"{model.kind} {model.name}" + (f" ({has[:12]})" if has else ", whose hash it does not state")
            raise UserError(f"{file}: its {side} is the {what}, not the bundle {wanted[:12]}; compare again: {how}")
    raise_on_regression(found)
    return EvidenceFile(str(file.resolve()), sha256_file(file))


def _check_experiment(file: Path, digest: str, current: PromotedBundle) -> EvidenceFile:
    result = read_result(file)
    if result.kind != "experiment":
        raise UserError(f"{file}: is a result of kind {result.kind}; give one of `vigil monitor experiment`")
    found: ExperimentResult = result.read(ExperimentResult)
    if found.digest != found.with_digest().digest:
        raise UserError(f"{file}: was altered since `vigil monitor experiment` wrote it; run it again")
    for side, arm, wanted in (("champion", found.champion, current.digest), ("challenger", found.challenger, digest)):
        if arm.bundle != wanted:
            raise UserError(f"{file}: its {side} is the bundle {(arm.bundle or 'without hash')[:12]}, not {wanted[:12]}")
    if found.verdict != "promote":
        raise NotPromotedError(f"{file}: the verdict is {found.verdict}: {found.reason}")
    return EvidenceFile(str(file.resolve()), sha256_file(file))


def _read_evidence(file: Path) -> dict[str, Any]:
    try:
        return json_fields.mapping(json.loads(file.read_text(encoding="utf-8")), str(file))
    except ValueError:
        raise UserError(f"{file}: is not JSON; run `vigil compare` again") from None


def _apply(folder: Path, made: Promotion, lines: Sequence[tuple[Promotion, str]]) -> Promotion:
    """Switch the link and record it."""
    made = replace(made, line_before=sha256(lines[-1][1].encode()).hexdigest() if lines else "")
    write_file(folder / PENDING, _line(made))
    _complete(folder)
    record_promotion(made, folder)
    return made


def record_promotion(made: Promotion, models: StrPath, **facts: Any) -> Node:
    """Record a promotion in the lineage, and return it; one that was recorded before gets further facts."""
    known = {"by": made.by, "back": made.back, "previous": made.previous and made.previous.digest, **facts}
    digest = sha256(_line(made).encode()).hexdigest()
    node = Node("promotion", digest, made.alias, str((Path(models) / RECORD).resolve()), known)
    record(node, [Input("bundle", made.bundle.digest, "promoted", Path(made.bundle.path).name, made.bundle.path)])
    return node


def _line(made: Promotion) -> str:
    return json.dumps(asdict(made), ensure_ascii=False)


def _complete(folder: Path) -> list[tuple[Promotion, str]]:
    """Complete a promotion that has begun, if there is one, and return the record."""
    lines, pending = _read(folder), folder / PENDING
    if pending.exists():
        line = pending.read_text(encoding="utf-8")
        made: Promotion = json_fields.structure(Promotion, json.loads(line), str(pending))
        _point(folder / made.alias, Path(made.bundle.path))
        if not lines or lines[-1][1] != line:
            lines.append((made, line))
            write_file(folder / RECORD, "".join(f"{text}\n" for _, text in lines))
        pending.unlink()
    return lines


def _point(link: Path, bundle: Path) -> None:
    """Replace a link atomically; it is relative, so that a tree of models and bundles can be moved."""
    partial = link.with_name(f".{link.name}.{uuid4().hex[:8]}")
    try:
        partial.symlink_to(os.path.relpath(bundle, link.parent.resolve()))
        partial.replace(link)
        sync(link.parent)
    except OSError as error:
        raise write_failure(link, error) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
