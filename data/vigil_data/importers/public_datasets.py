"""Import of public datasets of labelled text, each described as data: its columns, and the target for each of their values.

A label that a dataset does not annotate is unknown in its rows, so that datasets can be joined.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vigil_data.dataset.text_content import NO_CONTENT, is_blank, normalised
from vigil_data.errors import Problems, UserError
from vigil_data.importers.table_reader import TableRow, read_rows
from vigil_data.items import SAMPLING_COLUMNS, Item, sampling_value

if TYPE_CHECKING:
    from vigil_data.loading.packing import Refusal


@dataclass(frozen=True, slots=True)
class PublicSet:
    """Description of one public dataset.

    Attributes:
        title: description with the paper.
        files: names of its files within a folder.
        id: column of the row's id, or ``None`` for its number in the file, from 0; item ids are prefixed with the dataset's name.
        text: column of the text.
        targets: label to the annotation's column, and the target for each of its values (``None``: unknown).
        splits: column of the official split and our split for each of its values, or one split for all rows; ``None`` splits by
            the hash of the text.
        skipped: values of the annotation's column whose rows are skipped (such as undecided ones).
        columns: our name of a column to the dataset's name and the type of its values.
        derived: our name of a computed column to a function of the row's values; ``None`` is null.
    """

    title: str
    files: tuple[str, ...]
    id: str | None
    text: str
    targets: Mapping[str, tuple[str, Mapping[str, float | None]]]
    splits: tuple[str, Mapping[str, str]] | str | None = None
    skipped: frozenset[str] = frozenset()
    columns: Mapping[str, tuple[str, Callable[[str], Any]]] = field(default_factory=dict)
    derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = field(default_factory=dict)


_TERMS = {
    "verb_adj": re.compile(r"\S+ (.+)"),
    "am_hate_adj": re.compile(r"i (?:am|hate) (.+)"),
    "being_adj": re.compile(r"Being (.+) is \S+\."),
    "you_are_adj": re.compile(r"You are an? \S+ (.+)"),
    "name_adj": re.compile(r"\S+ is an? \S+ (.+)"),
}
"""Template of madlibs to the pattern of its identity term; the remaining template has an occupation instead."""


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
        skipped=frozenset({"relation", "idk/skip"}),
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
"""Name of each dataset on the command line to its description."""


class Imported(NamedTuple):
    """Items of a public dataset and refusals of those without content, and the number of skipped rows by reason."""

    items: "list[Item | Refusal]"
    skipped: dict[str, int]


def hashed_split(text: str) -> str:
    """Return train (80 %), validation or test (10 % each) from the hash of the normalised text."""
    share = int.from_bytes(hashlib.sha256(normalised(text).encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"


def read(name: str, path: Path) -> Imported:
    """Read a public dataset.

    Args:
        name: key of :data:`SETS`.
        path: its file, or the folder of its files.

    Raises:
        UserError: if a file is missing or belongs to another dataset, or a row has an unknown value.
    """
    description = SETS[name]
    problems = Problems()
    skipped: Counter[str] = Counter()
    items: list[Item | Refusal] = []
    for file in _files(name, path):
        rows = 0
        for row in read_rows(file, problems):
            rows += 1
            if rows == 1:
                _check_columns(name, file, row)
            if value := _skipped(row, description):
                skipped[f"labelled {value}"] += 1
            elif (item := _item(name, row, rows - 1, problems)) is not None:
                items.append(item)
        if not rows and not problems:
            problems.add(str(file), "no rows")
    problems.raise_if_any()
    return Imported(items, dict(skipped))


def _files(name: str, path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = [path / file for file in SETS[name].files]
    if absent := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{path} lacks {', '.join(absent)}, which {name} needs")
    return files


def _required_columns(description: PublicSet) -> list[str]:
    annotated = [column for column, _ in description.targets.values()]
    named = [description.id] if description.id is not None else []
    return [*named, description.text, *annotated, *([description.splits[0]] if isinstance(description.splits, tuple) else [])]


def _check_columns(name: str, file: Path, row: TableRow) -> None:
    if absent := [column for column in dict.fromkeys(_required_columns(SETS[name])) if column not in row.values]:
        raise UserError(f"{file} is not a file of {name}: it lacks the column {', '.join(map(repr, absent))}")


def _skipped(row: TableRow, description: PublicSet) -> str | None:
    values = (row.values.get(column) for column, _ in description.targets.values())
    return next((value for value in values if value in description.skipped), None)


def _item(name: str, row: TableRow, number: int, problems: Problems) -> "Item | Refusal | None":
    """Return the row's item; ``None`` and a problem if a value is not documented for the dataset."""
    description, values = SETS[name], row.values
    found = [
        f"column {column!r} is empty"
        for column in dict.fromkeys(_required_columns(description))
        if values[column] is None and column != description.text
    ]
    answers_of: dict[str, Iterable[str]] = dict(description.targets.values())
    answers_of |= dict([description.splits]) if isinstance(description.splits, tuple) else {}
    for column, answers in answers_of.items():
        if values[column] is not None and values[column] not in answers:
            found.append(f"{column} is {values[column]!r}, none of {', '.join(answers)}")
    sampling: dict[str, float] = {}
    for column in SAMPLING_COLUMNS:
        try:
            sampling |= {column: sampling_value(column, values[column])} if values.get(column) is not None else {}
        except ValueError as error:
            found.append(str(error))
    if found:
        for problem in found:
            problems.add(row.position, problem)
        return None
    id_ = f"{name}-{number if description.id is None else values[description.id]}"
    text = values[description.text]
    if text is None or is_blank(text):
        from vigil_data.loading.packing import Refusal  # lazy: the command imports this module for its help

        return Refusal(id_, "text", 0, NO_CONTENT)
    columns = {ours: make(values[theirs]) for ours, (theirs, make) in description.columns.items() if values.get(theirs)}
    columns |= {ours: value for ours, make in description.derived.items() if (value := make(values)) is not None}
    targets = {label: answers[values[column]] for label, (column, answers) in description.targets.items()}
    columns = {"source": name, "split": _split(description, row), **sampling, **columns}
    return Item(id_, (text,), targets=targets, columns=columns)


def _split(description: PublicSet, row: TableRow) -> str:
    if isinstance(description.splits, tuple):
        column, ours = description.splits
        return ours[row.values[column]]
    return description.splits or hashed_split(row.values[description.text])
