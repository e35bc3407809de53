"""Import of manifests: tables of texts, media paths and targets.

Every row is checked before the first media file is opened, so that all errors are reported at once and within seconds.

Example:
    >>> manifest = Manifest(Path("posts.jsonl"))
    >>> manifest.check()
    2
    >>> write("datasets/posts", manifest.items())
"""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.ingest import BadRows
from vigil_data.dataset.table_schema import is_column, is_label
from vigil_data.dataset.text_content import NO_CONTENT, is_blank
from vigil_data.errors import Problems, UserError, shown
from vigil_data.importers.bounded_lines import Limits
from vigil_data.importers.manifest_row import (
    COLUMN_READERS,
    FieldReader,
    Medium,
    ParsedRow,
    RowProblem,
    label_problem,
    other_kinds,
    read_column,
    read_contents,
    read_id,
    read_target,
    read_targets,
    read_text,
    shown_names,
)
from vigil_data.importers.table_reader import TableRow, read_rows, table_format
from vigil_data.importers.threads import CONTEXT, CONTEXT_CHARACTERS, PARENT, Threads, posted_text
from vigil_data.importers.transcripts import MAX_SEGMENT_SECONDS, parse_transcript, timed_texts
from vigil_data.items import MODALITIES, Item, Modality
from vigil_data.loading.packing import Refusal
from vigil_data.media_files import MediaFolder, UnreadItem, read_item
from vigil_data.quality.origin import ROW, Origin, Place, Refused

_DOTTED = "target."
_MAX_PLANS = 1000


class Content(NamedTuple):
    """One row of a manifest.

    Attributes:
        item: the item, or the refusal of a row.
        place: its place.
    """

    item: Item | Refusal
    place: Place


class _BadRows(Problems):
    """Errors of a manifest whose bad rows are left out.

    Attributes:
        reasons: position of each bad row to its errors.
        kinds: position of each bad row to the kind of its first error.
        stopped: whether an error ends the file, or all rows share it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reasons: dict[str, str] = {}
        self.kinds: dict[str, str] = {}
        self.stopped = False

    def add(self, position: str, message: str) -> None:
        super().add(position, message)
        before = self.reasons.get(position)
        self.reasons[position] = str(message) if before is None else f"{before}; {message}"
        self.kinds.setdefault(position, message.kind if isinstance(message, RowProblem) else "schema")

    def stop(self, position: str, message: str) -> None:
        super().add(position, message)
        self.stopped = True


@dataclass(frozen=True, slots=True)
class DerivedTexts:
    """How texts are made from transcripts and from the items that an item answers.

    Attributes:
        max_segment_seconds: see :func:`.timed_texts`.
        speakers: see :func:`.timed_texts`.
        context: see :class:`.Threads`.
        context_characters: see :class:`.Threads`.
    """

    max_segment_seconds: float = MAX_SEGMENT_SECONDS
    speakers: bool = False
    context: int = CONTEXT
    context_characters: int = CONTEXT_CHARACTERS


@dataclass(frozen=True, slots=True)
class _Plan:
    """How a row with certain names is read: the reader of each name, and the errors of the names themselves."""

    fields: tuple[tuple[str, FieldReader], ...]
    problems: tuple[str, ...]


class Manifest:
    """A manifest, read as a stream.

    Args:
        file: JSON Lines, CSV, TSV or Parquet; see :func:`.read_rows`. ``id`` is required; ``text`` is a string or a list;
            ``image`` and ``audio`` are a path or a list of paths (in Parquet also bytes); each may be an object with a role, see
            :func:`vigil_data.items.read_segments`; ``transcript`` is a path or a list of paths; ``parent_id`` names the item that
            a reply answers; ``target.LABEL`` columns or a mapping ``targets`` hold numbers in [0, 1], absent or null where
            unknown; ``inclusion_probability`` and ``weight`` describe the sampling; any other key is a column to slice by.
        media_root: folder that media paths are relative to and must not leave (default: the manifest's).
        allow_outside: open media outside that folder too.
        delimiter: see :func:`.read_rows`.
        limits: what is held in memory at once.
        bad_rows: ``fail`` for errors, or refuse the rows that have them, each with its place and reason.
        derived: how texts are made from transcripts and parents.
        stored: dataset that the items are appended to; parents are looked up there too.

    Raises:
        UserError: if ``media_root`` is not a folder.

    Attributes:
        origin: how to read this manifest again.
        threads: the replies, once :meth:`check` has read them.
    """

    def __init__(
        self,
        file: Path,
        *,
        media_root: Path | None = None,
        allow_outside: bool = False,
        delimiter: str | None = None,
        limits: Limits | None = None,
        bad_rows: BadRows = "fail",
        derived: DerivedTexts | None = None,
        stored: Dataset | None = None,
    ) -> None:
        self._file = file
        self._bad: _BadRows | None = _BadRows() if bad_rows == "quarantine" else None
        self._delimiter = delimiter
        self._limits = limits or Limits()
        self._derived = derived or DerivedTexts()
        self._stored = stored
        self.threads = Threads(self._derived.context, self._derived.context_characters)
        if media_root is not None and not media_root.is_dir():
            raise UserError(f"--media-root {media_root}: not a folder")
        self._media = MediaFolder(
            media_root or file.parent,
            allow_outside=allow_outside,
            max_bytes=self._limits.media,
            fix_outside="move it there, name the folder of all media with --media-root, or allow this with --allow-outside",
            fix_size="raise the limit with --max-media-mb",
        )
        options = {
            "media_root": media_root and str(media_root.absolute()),
            "allow_outside": allow_outside,
            "delimiter": delimiter,
            "limits": asdict(self._limits),
            "derived": asdict(self._derived),
        }
        self.origin = Origin("manifest", str(file.absolute()), options)
        self._lists_are_text = table_format(file) in (".csv", ".tsv")
        if delimiter is not None and not self._lists_are_text:
            raise UserError(f"--delimiter: {file} is not CSV")
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._fields: dict[str, FieldReader] = {
            "id": read_id,
            "text": read_text,
            "image": partial(self._paths, "image"),
            "audio": partial(self._paths, "audio"),
            "transcript": self._transcripts,
            "targets": read_targets,
        }

    def check(self, *, needs_good: bool = True) -> int:
        """Check every row without opening its images and audio; return the number of rows.

        Args:
            needs_good: with ``bad_rows="quarantine"``: raise the errors if every row has one.

        Raises:
            UserError: one line for each different error, with the first row that has it and the number of the others; the first
                twenty and the number of the others. With ``bad_rows="quarantine"`` only if no row is good, and for errors that
                end the file or that all rows share.
        """
        problems = Problems() if self._bad is None else self._bad
        self.threads = Threads(self._derived.context, self._derived.context_characters)
        first: dict[str, str] = {}
        kinds: dict[str, tuple[str, str]] = {}
        rows = content = good = 0
        for row in self._rows(problems):
            rows += 1
            draft, plan = self._draft(row)
            if row.header is None:
                draft.problems[:0] = plan.problems
            elif rows == 1:
                for problem in plan.problems:
                    problems.stop(row.header, problem)
            content += any(name in row.values for name in (*MODALITIES, "transcript"))
            if draft.id and (other := first.setdefault(draft.id, row.position)) != row.position:
                taken = f"id {draft.id} is also at {other}; ids must be unique"
                draft.problems.append(RowProblem("duplicate id", taken))
            draft.problems += other_kinds(draft.columns, row.position, kinds)
            good += not draft.problems
            for problem in draft.problems:
                problems.add(row.position, problem)
            if not draft.problems:
                self.threads.add(draft.id, draft.columns.get(PARENT), posted_text(draft.text, draft.roles.get("text")))
        if not rows and not problems:
            problems.stop(str(self._file), "no rows")
        elif not content and not problems:
            problems.stop(str(self._file), "no row has text, image or audio; check the spelling of the columns")
        if self._bad is None or self._bad.stopped or (needs_good and not good):
            problems.raise_if_any()
        if self.threads.replies:
            self.threads.resolve(self._stored, self.positions)
        return rows if self._bad is None else good + len(self._bad.reasons)

    def items(self, only: Callable[[str, Place], bool] | None = None, *, unread: bool = False) -> Iterator[Item | Refusal]:
        """Yield the items of a manifest that :meth:`check` has accepted, in order.

        An item without content (no media, and no text but white space or invisible characters) is refused, for the quarantine,
        and so are bad rows if they are put there; those that could not be read at all come last.

        Args:
            only: whether the row with this id and place is read (default: every row).
            unread: leave the reading of media files to the caller; see :class:`.UnreadItem`.

        Raises:
            UserError: if a media file is missing, unreadable or outside the folder by now.
        """
        items = (content.item for content in self.contents(only, unread=unread))
        return self.threads.with_context(items) if self.threads.replies else items

    def bad_rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield the kind of finding, the position and the errors of each bad row that :meth:`check` has found."""
        if self._bad is not None:
            for position, reason in self._bad.reasons.items():
                yield self._bad.kinds[position], position, reason

    def contents(self, only: Callable[[str, Place], bool] | None = None, *, unread: bool = False) -> Iterator[Content]:
        """Yield the items without their context, each with its place; see :meth:`items`."""
        bad = {} if self._bad is None else dict(self._bad.reasons)
        for row in self._rows(Problems()):
            draft, _ = self._draft(row)
            place = Place.at(self.origin, row.position)
            reason = bad.pop(row.position, None)
            if only is not None and not only(draft.id, place):
                continue
            if reason is not None:
                yield Content(Refused.of(Item(draft.id, columns=draft.columns), ROW, 0, reason, place), place)
                continue
            if all(map(is_blank, draft.text)):
                draft.text, draft.times = [], ()
                draft.roles.pop("text", None)
                if not draft.image and not draft.audio and not any(draft.transcripts):
                    yield Content(Refused.of(Item(draft.id, columns=draft.columns), "text", 0, NO_CONTENT, place), place)
                    continue
            media: list[tuple[Modality, list[Medium]]] = [("image", draft.image), ("audio", draft.audio)]
            files: dict[Modality, list[str | None]] = {m: [e if isinstance(e, str) else None for e in of] for m, of in media}
            item: Item = UnreadItem(
                draft.id,
                tuple(draft.text),
                tuple(b"" if isinstance(medium, str) else medium for medium in draft.image),
                tuple(b"" if isinstance(medium, str) else medium for medium in draft.audio),
                draft.targets,
                draft.columns,
                draft.roles,
                draft.times,
                self._media,
                files,
                row.position,
            )
            for cues in draft.transcripts:
                texts, times = timed_texts(cues, self._derived.max_segment_seconds, speakers=self._derived.speakers)
                item = item.with_texts(texts, "transcript", times)
            yield Content(item if unread else read_item(item), place)
        for position, reason in bad.items():
            place = Place.at(self.origin, position)
            if only is None or only("", place):
                yield Content(Refused("", ROW, 0, reason, place=place), place)

    def positions(self, ids: Collection[str]) -> dict[str, str]:
        """Return the position of the rows with these ids; reads the manifest once more."""
        found: dict[str, str] = {}
        for row in self._rows(Problems()) if ids else ():
            if (id_ := str(row.values.get("id")).strip()) in ids:
                found.setdefault(id_, row.position)
            if len(found) == len(ids):
                break
        return found

    def places(self, ids: Collection[str]) -> dict[str, Place]:
        """Return the places of the rows with these ids; reads the manifest once more."""
        return {id_: Place.at(self.origin, position) for id_, position in self.positions(ids).items()}

    def _rows(self, problems: Problems) -> Iterator[TableRow]:
        return read_rows(self._file, problems, limits=self._limits, delimiter=self._delimiter)

    def _draft(self, row: TableRow) -> tuple[ParsedRow, _Plan]:
        names = tuple(row.values)
        plan = self._plans.get(names)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[names] = self._plan(names, in_header=row.header is not None)
        draft = ParsedRow()
        values = row.values
        for name, read in plan.fields:
            read(draft, values[name])
        if values.get("id") is None and ("id" in values or row.header is None):
            draft.problems.append("id is missing")
        return draft, plan

    def _plan(self, names: tuple[str, ...], *, in_header: bool) -> _Plan:
        fields: list[tuple[str, FieldReader]] = []
        problems: list[str] = []
        if in_header and "id" not in names:
            hint = "; is its delimiter another one? Name it with --delimiter" if len(names) == 1 and self._lists_are_text else ""
            problems.append(f"the column id is missing; the columns are {shown_names(names)}{hint}")
        for name in names:
            if name.startswith(_DOTTED):
                label = name.removeprefix(_DOTTED)
                if is_label(label):
                    fields.append((name, partial(read_target, label)))
                else:
                    problems.append(label_problem(label))
            elif name in self._fields:
                fields.append((name, self._fields[name]))
            elif is_column(name):
                fields.append((name, partial(COLUMN_READERS.get(name, read_column), name)))
            else:
                problems.append(f"a column cannot be called {name!r}; rename it")
        return _Plan(tuple(fields), tuple(problems))

    def _paths(self, modality: Modality, draft: ParsedRow, value: Any) -> None:
        value = self._listed(modality, draft, value)
        if value is None:
            return
        media = read_contents(draft, modality, value, "path")
        setattr(draft, modality, [m for m in media if isinstance(m, bytes) or self._is_path(modality, draft, m)])

    def _transcripts(self, draft: ParsedRow, value: Any) -> None:
        value = self._listed("transcript", draft, value)
        for path in value if isinstance(value, list) else [] if value is None else [value]:
            if self._is_path("transcript", draft, path):
                try:
                    draft.transcripts.append(parse_transcript(self._media.read(path), path))
                except UserError as error:
                    draft.problems.append(f"transcript {error}")

    def _listed(self, name: str, draft: ParsedRow, value: Any) -> Any:
        """Return a path, or a list of them that a cell of CSV has as JSON; ``None`` if there is none."""
        if not self._lists_are_text or value is None or not value.startswith("["):
            return value
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            draft.problems.append(f"{name} is not a path, nor a JSON list of paths ({error.msg})")
            return None

    def _is_path(self, name: str, draft: ParsedRow, path: Any) -> bool:
        """Whether this is the path of a file that may be read; if not, the row has a problem."""
        if not isinstance(path, str) or not path or "\0" in path:
            draft.problems.append(f"{name} is {shown(path)}, not a path")
        elif problem := self._media.problem(path):
            kind = "outside" if self._media.is_outside(path) else "file"
            draft.problems.append(RowProblem(kind, f"{name} {path} {problem}"))
        else:
            return True
        return False
