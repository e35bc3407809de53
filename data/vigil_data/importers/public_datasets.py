"""Public sets of labelled text, each described as data: which column is what, and what its values say of which label.

A label that a set does not speak of is unknown in its rows, which is what allows sets to be joined.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vigil_data.errors import UserError, capped
from vigil_data.importers.table_reader import Row, read_rows
from vigil_data.items import Item

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset


@dataclass(frozen=True, slots=True)
class PublicSet:
    """How to read one public set.

    Attributes:
        title: what it is, with its paper.
        files: names of its files, for when a folder is given.
        id: the column that names a row, ``None`` for its number in the file, from 0; an item's id has the set's name before it.
        text: the column of the text.
        targets: label to the column that decides it and, by value of the column, the target (``None``: unknown).
        splits: the column of the official split and our names by its values, or one split for all rows; without it the text's
            hash decides.
        left_out: values of the deciding column whose rows are no items (skipped by the annotators, say).
        columns: columns to keep: our name to theirs and the type of its values.
        derived: columns that are worked out: our name to a function of the row's values; a value of ``None`` is null.
    """

    title: str
    files: tuple[str, ...]
    id: str | None
    text: str
    targets: Mapping[str, tuple[str, Mapping[str, float | None]]]
    splits: tuple[str, Mapping[str, str]] | str | None = None
    left_out: frozenset[str] = frozenset()
    columns: Mapping[str, tuple[str, Callable[[str], Any]]] = field(default_factory=dict)
    derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)


_TERMS = {
    "verb_adj": re.compile(r"\S+ (.+)"),
    "am_hate_adj": re.compile(r"i (?:am|hate) (.+)"),
    "being_adj": re.compile(r"Being (.+) is \S+\."),
    "you_are_adj": re.compile(r"You are an? \S+ (.+)"),
    "name_adj": re.compile(r"\S+ is an? \S+ (.+)"),
}
"""Where the texts of a madlibs template have their identity term; the other template has an occupation in its place."""


def _identity_term(values: Mapping[str, Any]) -> str | None:
    pattern = _TERMS.get(values["Template"])
    found = pattern.fullmatch(values["Text"]) if pattern else None
    return found[1] if found else None


_OFFICIAL = {"train": "train", "dev": "validation", "test": "test"}

SETS: dict[str, PublicSet] = {
    "davidson": PublicSet(
        title="tweets: hate, offensive or neither (Davidson et al. 2017)",
        files=("labeled_data.csv",),
        id="",
        text="tweet",
        targets={
            "hate": ("class", {"0": 1.0, "1": 0.0, "2": 0.0}),
            "offensive": ("class", {"0": None, "1": 1.0, "2": 0.0}),
        },
        columns={"davidson_class": ("class", int)},
    ),
    "edos": PublicSet(
        title="posts: sexist or not, with official splits (Kirk et al. 2023, SemEval task 10)",
        files=("edos_labelled_aggregated.csv",),
        id="rewire_id",
        text="text",
        targets={"sexism": ("label_sexist", {"sexist": 1.0, "not sexist": 0.0})},
        splits=("split", _OFFICIAL),
        columns={"edos_category": ("label_category", str), "edos_vector": ("label_vector", str)},
    ),
    "stormfront": PublicSet(
        title="forum sentences: hate or not (de Gibert et al. 2018)",
        files=("stormfront.csv",),
        id="file_id",
        text="text",
        targets={"hate": ("label", {"hate": 1.0, "noHate": 0.0})},
        left_out=frozenset({"relation", "idk/skip"}),
    ),
    "hatemoji": PublicSet(
        title="adversarial text with emoji in minimal pairs, with official splits (Kirk et al. 2022)",
        files=("build_train.csv", "build_validation.csv", "build_test.csv"),
        id="entry_id",
        text="text",
        targets={"hate": ("label_gold", {"1": 1.0, "0": 0.0})},
        splits=("split", _OFFICIAL),
        columns={
            "matched_id": ("matched_id", "hatemoji-{}".format),
            "hatemoji_type": ("type", str),
            "hatemoji_target": ("target", str),
        },
    ),
    "surge": PublicSet(
        title="comments: toxic or not, which is nearest to offensive; an evaluation set (Surge AI 2022)",
        files=("toxicity_en.csv",),
        id=None,
        text="text",
        targets={"offensive": ("is_toxic", {"Toxic": 1.0, "Not Toxic": 0.0})},
        splits="test",
    ),
    "madlibs": PublicSet(
        title="made-up sentences on 50 identities: bad or not, which is nearest to hate; an evaluation set (Dixon et al. 2018)",
        files=("bias_madlibs_77k.csv",),
        id=None,
        text="Text",
        targets={"hate": ("Label", {"BAD": 1.0, "NOT_BAD": 0.0})},
        splits="test",
        columns={"template": ("Template", str)},
        derived={"identity": _identity_term},
    ),
}
"""Name of each set, as the command takes it, to its description."""

_GUARDED = ("test", "validation", "train")
"""Of equal texts in several splits of one import, the one in the first of these stays."""


class Imported(NamedTuple):
    """Items of a public set, and the number of rows that are not among them, by reason."""

    items: list[Item]
    left_out: dict[str, int]


def normalised(text: str) -> str:
    """The text without what hides that two are equal: case, compatibility forms and white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def hashed_split(text: str) -> str:
    """One of train (80 %), validation and test (10 % each), by the normalised text alone, whatever the set and its order."""
    share = int.from_bytes(hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def read(name: str, path: Path, placed: Mapping[str, str] | None = None) -> Imported:
    """Read a public set.

    Args:
        name: key of :data:`SETS`.
        path: its file, or the folder that holds its files.
        placed: normalised text to split of the items that the dataset has. A row whose text is in another split already is left
            out and counted, so that nothing leaks from training into tests; so is one whose text stands in a more guarded split
            of the same set.

    Raises:
        UserError: a file is absent or not of this set, or a row cannot be understood.
    """
    description = SETS[name]
    problems: list[str] = []
    left_out: Counter[str] = Counter()
    items: list[Item] = []
    for file in _files(name, path):
        rows = 0
        for row in read_rows(file, problems):
            rows += 1
            if rows == 1:
                _check_columns(name, file, row)
            if value := _left_out(row, description):
                left_out[f"labelled {value}"] += 1
            else:
                items += _item(name, row, rows - 1, problems)
        if not rows and not problems:
            problems.append(f"{file} has no rows")
    if problems:
        raise UserError(*capped(problems))
    kept = _without_leaks(items, placed or {})
    if leaks := len(items) - len(kept):
        left_out["the same text is in another split"] = leaks
    return Imported(kept, dict(left_out))


def _files(name: str, path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [path / file for file in SETS[name].files]
    if absent := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{path} does not hold {', '.join(absent)}, which {name} needs")
    return files


def _needed(description: PublicSet) -> list[str]:
    deciding = [column for column, _ in description.targets.values()]
    named = [description.id] if description.id is not None else []
    return [*named, description.text, *deciding, *([description.splits[0]] if isinstance(description.splits, tuple) else [])]


def _check_columns(name: str, file: Path, row: Row) -> None:
    if absent := [column for column in dict.fromkeys(_needed(SETS[name])) if column not in row.values]:
        raise UserError(f"{file} is not a file of {name}: it lacks the column {', '.join(map(repr, absent))}")


def _left_out(row: Row, description: PublicSet) -> str | None:
    values = (row.values.get(column) for column, _ in description.targets.values())
    return next((value for value in values if value in description.left_out), None)


def _item(name: str, row: Row, number: int, problems: list[str]) -> list[Item]:
    """The row's item; none, and a problem, where a value is not one that the set is known to have."""
    description, values = SETS[name], row.values
    found = [
        f"{row.place}: column {column!r} is empty" for column in dict.fromkeys(_needed(description)) if values[column] is None
    ]
    answers_of: dict[str, Iterable[str]] = dict(description.targets.values())
    answers_of |= dict([description.splits]) if isinstance(description.splits, tuple) else {}
    for column, answers in answers_of.items():
        if values[column] is not None and values[column] not in answers:
            found.append(f"{row.place}: {column} is {values[column]!r}, none of {', '.join(answers)}")
    if found:
        problems += found
        return []
    text = values[description.text]
    columns = {ours: make(values[theirs]) for ours, (theirs, make) in description.columns.items() if values.get(theirs)}
    columns |= {ours: value for ours, make in description.derived.items() if (value := make(values)) is not None}
    targets = {label: answers[values[column]] for label, (column, answers) in description.targets.items()}
    id_ = f"{name}-{number if description.id is None else values[description.id]}"
    return [Item(id_, (text,), targets=targets, columns={"source": name, "split": _split(description, row), **columns})]


def _split(description: PublicSet, row: Row) -> str:
    if isinstance(description.splits, tuple):
        column, ours = description.splits
        return ours[row.values[column]]
    return description.splits or hashed_split(row.values[description.text])


def _without_leaks(items: Iterable[Item], placed: Mapping[str, str]) -> list[Item]:
    """Items whose text is in no other split, neither of the dataset nor, more guarded, of the same import."""
    texts = [(item, normalised(item.text[0])) for item in items]
    best: dict[str, str] = {}
    for item, text in texts:
        best[text] = min(best.get(text, "train"), item.columns["split"], key=_GUARDED.index)
    return [item for item, text in texts if item.columns["split"] == placed.get(text, best[text])]


def placed(dataset: "Dataset") -> dict[str, str]:
    """Normalised text to the split of the items that hold it, of all items that have a split."""
    table = dataset.table(["text", "split"])
    texts, splits = table["text"].to_pylist(), table["split"].to_pylist()
    return {normalised("\n".join(text)): split for text, split in zip(texts, splits, strict=True) if text and split}
