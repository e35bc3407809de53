"""`vigil data erase` and `retention`: items removed for good, on request or by a policy."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vigil.cli.data.tables import print_table
from vigil_data.errors import UserError, one_line
from vigil_data.progress import Progress

if TYPE_CHECKING:
    from vigil_data.dataset.erasure.selection import Plan, Selection

DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="The dataset's folder.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the history and the certificate; no ids.")]
Runs = Annotated[
    Path | None, typer.Option("--runs", metavar="DIR", help="Folder searched for runs that have seen the items (default: runs).")
]
Bundles = Annotated[
    Path | None, typer.Option("--bundles", metavar="DIR", help="Folder searched for such bundles (default: bundles).")
]
Search = Annotated[
    bool, typer.Option("--search/--no-search", help="Search all files of the dataset for the items' bytes at the end.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

MAX_PRINTED = 20


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("erase")(erase)
    group.command("retention")(retention)


def erase(
    dataset: DatasetFolder,
    *,
    ids: Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="An item; may be repeated.")] = None,
    ids_file: Annotated[Path | None, typer.Option("--ids-file", metavar="FILE", help="File of ids, one a line.")] = None,
    author: Annotated[str | None, typer.Option("--author", metavar="NAME", help="All items of an author.")] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Items created before that: 90d, 8w or 2y.")
    ] = None,
    where: Annotated[
        str | None, typer.Option("--where", metavar="SQL", help="Items that meet a condition over the columns.")
    ] = None,
    copies: Annotated[bool, typer.Option("--copies", help="Other items with exactly the same content, too.")] = False,
    reason: Reason = "",
    runs: Runs = None,
    bundles: Bundles = None,
    search: Search = True,
    yes: Yes = False,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an erasure that was interrupted.")] = False,
) -> None:
    """Erase items: their bytes are removed from every version, tag, table, cache, index and leftover file of the dataset.

    Earlier versions are collapsed into one. A ledger of salted hashes refuses a later import of the same items. A certificate
    names the versions, runs and bundles that have seen them; weights are not unlearned. Stop runs that read the dataset first.
    """
    from vigil_data.dataset.erasure import erase as erasing

    given = {"--id": ids, "--ids-file": ids_file, "--author": author, "--older-than": older_than, "--where": where}
    named = [option for option, value in given.items() if value is not None]
    if resume:
        if named:
            raise UserError(f"--resume finishes the interrupted erasure; leave {named[0]} out")
        with Progress("erasing") as progress:
            certificate = erasing.resume(dataset, search=search, progress=progress)
        if certificate is None:
            typer.echo(f"{dataset}: no erasure was interrupted")
            return
        _print_certificate(dataset, certificate)
        return
    if not named or (len(named) > 1 and set(named) != {"--id", "--ids-file"}):
        raise UserError(
            f"{' and '.join(named)}: name one of them; write other conditions with --where"
            if named
            else "name what to erase: --id, --ids-file, --author, --older-than or --where"
        )
    from vigil_data.dataset.erasure.selection import plan_erasure

    with Progress("finding the items"):
        plan = plan_erasure(dataset, _selection(ids, ids_file, author, older_than, where), copies=copies)
    for id_, when in list(plan.erased_before.items())[:MAX_PRINTED]:
        typer.echo(one_line(f"{id_}: was erased on {when}"))
    if len(plan.erased_before) > MAX_PRINTED:
        typer.echo(f"… and {len(plan.erased_before) - MAX_PRINTED:,} more that were erased before")
    if plan.absent:
        shown = ", ".join(plan.absent[:5]) + (f" and {len(plan.absent) - 5:,} more" if len(plan.absent) > 5 else "")
        line = one_line(f"dataset {dataset} has no item {shown}")
        if not plan.items:
            raise UserError(f"{line}; nothing was erased")
        typer.echo(f"warning: {line}", err=True)
    _erase_plan(plan, "erase", reason, runs=runs, bundles=bundles, search=search, yes=yes)


def retention(
    dataset: DatasetFolder,
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="The retention policy, YAML.")],
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Erase what the policy names (default: only report it).")] = False,
    runs: Runs = None,
    bundles: Bundles = None,
    search: Search = True,
    yes: Yes = False,
) -> None:
    """Report what a retention policy would erase, and erase it with --apply, as `vigil data erase` does.

    A rule names items by age, content type, source, split, whether they have known targets, or a condition. Items on legal hold
    are kept and counted.
    """
    from vigil_data.dataset.erasure.retention import plan_retention, read_policy

    read = read_policy(policy)
    try:
        with Progress("finding the items"):
            plan, counts = plan_retention(dataset, read, datetime.now(UTC))
    except UserError as error:
        raise UserError(*(f"{policy}: {line}" if line.startswith("rule ") else line for line in error.lines)) from None
    print_table(
        ["rule", "items to erase", "in quarantine", "on legal hold", "without created_at"],
        ([count.rule, count.items, count.quarantined, count.held, count.undated] for count in counts),
    )
    if not apply:
        _print_plan(plan)
        typer.echo("nothing was erased; add --apply" if plan.items else "nothing to erase")
        return
    names = ", ".join(count.rule for count in counts if count.items)
    reason = f"retention policy {read.name}: {names}"
    _erase_plan(plan, "retention", reason, runs=runs, bundles=bundles, search=search, yes=yes)


def _selection(
    ids: list[str] | None, ids_file: Path | None, author: str | None, older_than: str | None, where: str | None
) -> "Selection":
    from vigil_data.dataset.erasure.retention import parse_age, read_ids
    from vigil_data.dataset.erasure.selection import Selection

    if ids is not None or ids_file is not None:
        return Selection(ids=frozenset([*(ids or ()), *(read_ids(ids_file) if ids_file is not None else ())]))
    if older_than is not None:
        return Selection(before=datetime.now(UTC) - parse_age(older_than))
    return Selection(author=author, where=where)


def _erase_plan(
    plan: "Plan", operation: str, reason: str, *, runs: Path | None, bundles: Path | None, search: bool, yes: bool
) -> None:
    """Show what will be erased, ask, and erase it."""
    from vigil.workflows.data.erasure_exposure import find_exposure
    from vigil_data.dataset.erasure.erase import erase
    from vigil_data.dataset.history import Change
    from vigil_data.lineage.invocation import command_line

    if plan.undated:
        typer.echo(f"not matched, as they have no created_at: {plan.undated:,}")
    if not plan.items:
        typer.echo("nothing to erase")
        return
    _print_plan(plan)
    with Progress("searching runs") as progress:
        roots = (_root(runs, "runs"), _root(bundles, "bundles"))
        exposure = find_exposure(plan, *roots, report=lambda folder: progress(f"searching {folder}"))
    _print_exposure(exposure)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("nothing was erased: there is no terminal to ask on; add --yes")
        if not typer.confirm(f"Erase {len(plan.items):,} {_items(len(plan.items))} for good?"):
            typer.echo("nothing was erased")
            return
    change = Change(operation, reason, command=command_line(names=False))
    with Progress("erasing") as progress:
        certificate = erase(plan, change, exposure=exposure, search=search, progress=progress)
    _print_certificate(plan.path, certificate)


def _root(given: Path | None, default: str) -> Path | None:
    if given is not None and not given.is_dir():
        raise UserError(f"{given}: no such folder")
    return given or (Path(default) if Path(default).is_dir() else None)


def _print_plan(plan: "Plan") -> None:
    if not plan.items:
        return
    typer.echo(f"{plan.path} version {plan.version}: {len(plan.items):,} {_items(len(plan.items))} to erase")
    rows: list[list[Any]] = []
    for split, count in plan.splits.items():
        of = [item for item in plan.items if item.first and item.split == split]
        first, last = min(item.first for item in of), max(item.last for item in of)
        rows.append([split or "(no split)", count, str(first) if first == last else f"{first} to {last}"])
    only = sum(not item.first for item in plan.items)
    rows += [["(only in quarantine)", only, ""]] if only else []
    print_table(["split", "items", "versions that have them"], rows)
    for what, count in (("copies of selected items", plan.copies), ("also in quarantine", plan.quarantined - only)):
        if count:
            typer.echo(f"{what}: {count:,}")
    if plan.held:
        typer.echo(f"on legal hold, kept: {plan.held:,}")
    if any(item.first for item in plan.items):
        gone = [str(version) for version in plan.versions]
        tags = [name for name, version in plan.tags.items() if version != plan.version]
        versions = f"version {gone[0]}" if len(gone) == 1 else f"versions {gone[0]} to {gone[-1]}"
        typer.echo(
            one_line(f"{versions} will be replaced by one new version" + (f"; tags removed: {', '.join(tags)}" if tags else ""))
        )


def _print_exposure(exposure: "dict[str, Any]") -> None:
    from vigil.workflows.data.erasure_exposure import exposure_lines, other_lines

    lines = exposure_lines(exposure)
    if lines:
        print_table(["seen by", "dataset version", "how", "files with ids or content"], lines[:MAX_PRINTED])
        if len(lines) > MAX_PRINTED:
            typer.echo(f"… and {len(lines) - MAX_PRINTED} more, in the certificate")
    else:
        typer.echo(f"no run or bundle in {', '.join(exposure['searched'])} has seen them")
    if others := other_lines(exposure):
        more = f" and {len(others) - MAX_PRINTED} more, in the certificate" if len(others) > MAX_PRINTED else ""
        typer.echo(one_line(f"other files with ids or content: {', '.join(others[:MAX_PRINTED])}{more}"))
    for log in exposure["traffic"]:
        typer.echo(one_line(f"not searched: traffic log {log}; `vigil monitor traffic {log} --erase-id ID` erases from it"))


def _print_certificate(dataset: Path, certificate: "dict[str, Any]") -> None:
    from vigil_data.dataset.erasure.erase import CERTIFICATES

    count = certificate["items"]["erased"]
    places = certificate["places"]
    removed = sum(place.get("removed_bytes", 0) for place in places.values())
    left = certificate["versions"]["after"]
    versions = f"version {left[0]}, its only one" if len(left) == 1 else f"version {left[-1]}"
    typer.echo(f"erased {count:,} {_items(count)}; {dataset} is at {versions}; {removed / 1e6:,.1f} MB of files removed")
    for name, place in places.items():
        if place.get("quotations"):
            typer.echo(f"removed from the context of other items: {place['quotations']:,}")
        if place.get("references"):
            typer.echo(f"ids replaced by a hash in columns that refer to them: {place['references']:,}")
        for index in place.get("dropped_indices", ()):
            typer.echo(one_line(f"{name}: index {index} was dropped, as it held the items; build it again"))
    search = certificate["search"]
    if search["searched"]:
        shared = f"; {search['in_other_items']:,} are also in items that stay" if search["in_other_items"] else ""
        typer.echo(
            f"searched {search['files']:,} files ({search['bytes'] / 1e6:,.1f} MB) for {search['patterns']:,} ids and contents: "
            f"none is left{shared}"
        )
    typer.echo(f"certificate: {dataset / CERTIFICATES / ('certificate-' + certificate['erasure'] + '.json')}")
    if any(certificate["exposure"].get(kind) for kind in ("runs", "bundles")):
        typer.echo("the weights of runs and bundles that have seen the items are unchanged: nothing is unlearned")


def _items(count: int) -> str:
    return "item" if count == 1 else "items"
