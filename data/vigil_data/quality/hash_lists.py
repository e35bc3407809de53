"""Lists of known content: CSV files of hashes, exact and perceptual, each with what to do where it is found.

A row is ``kind,value,list,action``, all in hexadecimal but the last two:

    kind     what is compared
    md5      bytes of an image or audio file
    sha256   the same
    text     SHA-256 of the own text in NFKC, case-folded, with single spaces
    minhash  128 bytes, MinHash of the own text (:mod:`vigil_data.quality.near.texts`); near
    pdq      256 bits of an image; near
    phash    64 bits of an image; near

The action is ``quarantine`` or ``flag``.
"""

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vigil_data.dataset.dataset import Dataset
from vigil_data.dataset.history import Change
from vigil_data.dataset.revision import write_columns
from vigil_data.dataset.text_content import normalised
from vigil_data.errors import Problems, UserError
from vigil_data.filesystem import StrPath
from vigil_data.items import Item, Modality
from vigil_data.loading.packing import Refusal
from vigil_data.quality.checks.removal import move_items
from vigil_data.quality.near.fingerprints import own_content
from vigil_data.quality.near.hamming import distances
from vigil_data.quality.near.images import BITS, ImageHash, ImagePrints, installed_hash
from vigil_data.quality.near.texts import TextPrints, estimated_jaccard
from vigil_data.quality.origin import Origin, Place, Refused
from vigil_data.quality.quarantine import LISTED

Kind = Literal["md5", "sha256", "text", "minhash", "pdq", "phash"]
Action = Literal["quarantine", "flag"]

ACTIONS: tuple[Action, ...] = ("quarantine", "flag")

DIGITS: Mapping[Kind, int] = {"md5": 32, "sha256": 64, "text": 64, "minhash": 256, "pdq": 64, "phash": 16}
"""Hexadecimal digits of a value of each kind."""

NEAR: tuple[Kind, ...] = ("minhash", "pdq", "phash")

FLAG = "matched_lists"
"""Column of flagged items: the names of the lists that they match, joined by commas."""

HEADER = ("kind", "value", "list", "action")

_BLOCK, _BLOCK_WITH_MEDIA = 1024, 32


@dataclass(frozen=True, slots=True)
class Limits:
    """How close content is that matches a perceptual hash.

    Attributes:
        pdq: largest number of differing bits.
        phash: the same.
        minhash: least Jaccard index, estimated with a standard error of up to 0.045.
    """

    pdq: int = 31
    phash: int = 6
    minhash: float = 0.7


class Match(NamedTuple):
    """Known content in an item.

    Attributes:
        modality: of the content.
        place: its place among the item's texts, images or audio files.
        kind: of the hash.
        list_name: name of the list.
        action: what to do.
        score: 0 for equal content, else the number of differing bits, or the estimated Jaccard index of a text.
    """

    modality: Modality
    place: int
    kind: Kind
    list_name: str
    action: Action
    score: float

    @property
    def reason(self) -> str:
        """What matches, for the quarantine table; it does not have the content."""
        near = {"minhash": f", similarity {self.score:.2f}", "pdq": f", {self.score:.0f} bits differ"}
        return f"{LISTED}{self.list_name} ({self.kind}{near.get(self.kind, near['pdq']) if self.kind in NEAR else ''})"


class HashList:
    """Known hashes in memory.

    Args:
        entries: kind, value as bytes, name of the list, and action.
        limits: how close near matches are.
    """

    def __init__(self, entries: Iterable[tuple[Kind, bytes, str, Action]], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._exact: dict[Kind, dict[bytes, tuple[str, Action]]] = {"md5": {}, "sha256": {}, "text": {}}
        near: dict[Kind, list[tuple[bytes, str, Action]]] = {kind: [] for kind in NEAR}
        for kind, value, name, action in entries:
            if kind in near:
                near[kind].append((value, name, action))
            elif (known := self._exact[kind].get(value)) is None or known[1] == "flag":
                self._exact[kind][value] = (name, action)
        self._near = {kind: [(name, action) for _, name, action in found] for kind, found in near.items()}
        self._values = {
            kind: np.frombuffer(b"".join(value for value, *_ in found), np.uint8).reshape(len(found), DIGITS[kind] // 2)
            for kind, found in near.items()
        }

    def __len__(self) -> int:
        return sum(map(len, self._exact.values())) + sum(map(len, self._near.values()))

    def find(self, item: Item) -> list[Match]:
        """Return the known content of an item, what is quarantined first; context does not count."""
        found: list[Match] = []
        for _, text in own_content("text", item.text, item.roles.get("text")):
            found += self._find_text(text)
        for modality in ("image", "audio"):
            for index, file in own_content(modality, getattr(item, modality), item.roles.get(modality)):
                found += self._find_file(modality, index, file)
        return sorted(found, key=lambda match: match.action != "quarantine")

    def _find_text(self, text: str) -> Iterator[Match]:
        if not (plain := normalised(text)):
            return
        yield from self._exactly("text", text_digest(plain), "text", 0)
        if self._near["minhash"]:
            signature_1B = TextPrints.of([text]).signature_SB
            similarity = estimated_jaccard(self._values["minhash"], signature_1B)
            yield from self._closest("minhash", similarity, similarity >= self.limits.minhash, "text", 0, sign=-1)

    def _find_file(self, modality: Modality, index: int, file: bytes) -> Iterator[Match]:
        if self._exact["md5"]:
            yield from self._exactly("md5", hashlib.md5(file, usedforsecurity=False).digest(), modality, index)
        if self._exact["sha256"]:
            yield from self._exactly("sha256", hashlib.sha256(file).digest(), modality, index)
        most_bits: dict[ImageHash, int] = {"pdq": self.limits.pdq, "phash": self.limits.phash}
        for kind, most in most_bits.items():
            if modality == "image" and self._near[kind]:
                prints = ImagePrints.of([file], kind)
                if prints.usable_S[0]:
                    differing = distances(self._values[kind], prints.bits_SB)
                    yield from self._closest(kind, differing, differing <= most, modality, index, sign=1)

    def _exactly(self, kind: Kind, value: bytes, modality: Modality, index: int) -> Iterator[Match]:
        if (known := self._exact[kind].get(value)) is not None:
            yield Match(modality, index, kind, known[0], known[1], 0.0)

    def _closest(
        self, kind: Kind, score: NDArray[np.generic], near: NDArray[np.bool_], modality: Modality, index: int, *, sign: int
    ) -> Iterator[Match]:
        """Yield for each list the closest of its hashes that is near enough."""
        named: set[tuple[str, Action]] = set()
        places = np.flatnonzero(near)
        for place in places[np.argsort(sign * score[places], kind="stable")].tolist():
            if (known := self._near[kind][place]) not in named:
                named.add(known)
                yield Match(modality, index, kind, known[0], known[1], float(score[place]))


def text_digest(plain: str) -> bytes:
    """Return the digest of a text from :func:`~vigil_data.dataset.text_content.normalised`."""
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()


def read_list(path: StrPath, limits: Limits | None = None) -> HashList:
    """Read a list of known hashes.

    Raises:
        UserError: if it cannot be read or a row is invalid, with every line; or if it has PDQ hashes and pdqhash is not
        installed.
    """
    file = Path(path)
    problems = Problems()
    entries: list[tuple[Kind, bytes, str, Action]] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.reader(opened)
            header = [cell.strip().lower() for cell in next(reader, [])]
            if sorted(header) != sorted(HEADER):
                raise UserError(f"{file}:1: the columns must be {','.join(HEADER)}, not {','.join(header) or 'none'}")
            for row in reader:
                if not row:
                    continue
                entry, problem = _entry(dict(zip(header, row, strict=False)))
                if entry is None:
                    problems.add(f"{file}:{reader.line_num}", problem)
                else:
                    entries.append(entry)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num}: not CSV: {error}") from None
    problems.raise_if_any()
    if any(kind == "pdq" for kind, *_ in entries) and installed_hash() != "pdq":
        raise UserError(
            f"{file} has PDQ hashes, and the package pdqhash is not installed; install it with `pip install 'vigil[pdq]'`"
        )
    return HashList(entries, limits)


def _entry(row: Mapping[str, str]) -> tuple[tuple[Kind, bytes, str, Action] | None, str]:
    given, value, name, action = (row.get(column, "").strip() for column in HEADER)
    kind = next((known for known in DIGITS if known == given.lower()), None)
    if kind is None:
        return None, f"kind {given or '(empty)'}: must be one of {', '.join(DIGITS)}"
    if not re.fullmatch(f"[0-9a-f]{{{DIGITS[kind]}}}", value.lower()):
        return None, f"the value of a {kind} must be {DIGITS[kind]} hexadecimal digits"
    wanted = next((known for known in ACTIONS if known == action), None)
    if wanted is None:
        return None, f"action {action or '(empty)'}: must be quarantine or flag"
    if not name or "," in name:
        return None, "the list needs a name without commas"
    return (kind, bytes.fromhex(value), name, wanted), ""


@dataclass(frozen=True, slots=True)
class Screen:
    """Screening of the items of an import; see :func:`vigil_data.dataset.dataset.write`.

    Attributes:
        known: the list.
    """

    known: HashList

    def __call__(self, item: Item) -> tuple[Item | Refusal, str]:
        """Return an item with known content as a refusal, or flagged in the column :data:`FLAG`; and the action of the list."""
        found = self.known.find(item)
        if not found:
            return item, ""
        if found[0].action == "quarantine":
            return Refused.of(item, found[0].modality, found[0].place, found[0].reason), "quarantine"
        return replace(item, columns={**item.columns, FLAG: flag_value(found)}), "flag"


def flag_value(found: Sequence[Match]) -> str:
    """Return the value of the column :data:`FLAG`."""
    return ",".join(sorted({match.list_name for match in found}))


def match_dataset(dataset: Dataset, known: HashList, progress: Callable[[int], None] = lambda _: None) -> dict[str, list[Match]]:
    """Return id to the known content of each item that has some."""
    found: dict[str, list[Match]] = {}
    done = 0
    for rows in _blocks(dataset, np.arange(len(dataset))):
        for item in dataset.take(rows):
            if matches := known.find(item):
                found[item.id] = matches
        done += len(rows)
        progress(done)
    return found


def _blocks(dataset: Dataset, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the rows in blocks, of few items where they have media."""
    if not len(rows):
        return
    has_media_N = (dataset.facts(rows)[:, 1:] > 0).any(axis=1)
    load_N = np.cumsum(np.where(has_media_N, _BLOCK // _BLOCK_WITH_MEDIA, 1)) // _BLOCK
    yield from np.split(rows, np.flatnonzero(np.diff(load_N)) + 1)


def apply_matches(dataset: Dataset, found: Mapping[str, Sequence[Match]], reason: str = "") -> int:
    """Do with stored items what the lists say, and return the new version.

    Flagged ones have the names of the lists in the column :data:`FLAG`; quarantined ones move into the quarantine, as a second
    version if there are both.

    Args:
        dataset: the newest version of a dataset.
        found: from :func:`match_dataset`.
        reason: why, for the history.

    Raises:
        UserError: if the dataset has changed since it was opened.
    """
    version = dataset.version
    if flagged := {id_: flag_value(of) for id_, of in found.items() if of[0].action == "flag"}:
        table = pa.table({"id": pa.array(flagged, pa.string()), FLAG: pa.array(flagged.values(), pa.string())})
        version = write_columns(dataset.path, table, Change("match", reason, {"flagged": len(flagged)}), base=version)
    if moved := {id_: of[0] for id_, of in found.items() if of[0].action == "quarantine"}:
        origin = Origin("dataset", str(dataset.path.absolute()), {"version": version})
        row_N = np.flatnonzero(pc.is_in(dataset.table(["id"])["id"], pa.array(moved, pa.string())).to_numpy())
        refused = {}
        for row, item in zip(row_N.tolist(), dataset.table(["id", "author", "created_at"], row_N).to_pylist(), strict=True):
            of = moved[item["id"]]
            place = Place(origin, origin.path, row)
            refused[row] = Refused(
                item["id"], of.modality, of.place, of.reason, author=item["author"], created_at=item["created_at"], place=place
            )
        version = move_items(dataset.path, refused, Change("match", reason, {"quarantined": len(refused)}), base=version)
    return version


def hashes(
    dataset: Dataset, kinds: Sequence[Kind], name: str, action: Action, rows: NDArray[np.int64] | None = None
) -> Iterator[tuple[Kind, str, str, Action]]:
    """Yield the rows of a list of a dataset's own content, without duplicates.

    Args:
        dataset: the dataset.
        kinds: hashes to compute.
        name: name of the list.
        action: what to do where they are found.
        rows: row numbers (default: all).
    """
    seen: set[tuple[Kind, str]] = set()
    numbers = np.arange(len(dataset)) if rows is None else rows
    for block in _blocks(dataset, numbers):
        for item in dataset.take(block):
            for kind, value in _hashes_of(item, kinds):
                if (kind, value) not in seen:
                    seen.add((kind, value))
                    yield kind, value, name, action


def _hashes_of(item: Item, kinds: Sequence[Kind]) -> Iterator[tuple[Kind, str]]:
    for _, text in own_content("text", item.text, item.roles.get("text")):
        if plain := normalised(text):
            if "text" in kinds:
                yield "text", text_digest(plain).hex()
            if "minhash" in kinds:
                yield "minhash", TextPrints.of([text]).signature_SB[0].tobytes().hex()
    for modality in ("image", "audio"):
        for _, file in own_content(modality, getattr(item, modality), item.roles.get(modality)):
            if "md5" in kinds:
                yield "md5", hashlib.md5(file, usedforsecurity=False).hexdigest()
            if "sha256" in kinds:
                yield "sha256", hashlib.sha256(file).hexdigest()
            for kind in BITS:
                if modality == "image" and kind in kinds and (prints := ImagePrints.of([file], kind)).usable_S[0]:
                    yield kind, prints.bits_SB[0].tobytes().hex()
