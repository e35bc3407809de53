"""Datasets of functional suites: read a suite's YAML, build its dataset, or open an existing dataset as a suite."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vigil_data.errors import UserError, capped
from vigil_data.filesystem import StrPath, why_not_a_file
from vigil_data.progress import ProgressCallback
from vigil_data.yaml_files.read_spec import read_spec
from vigil_data.yaml_files.yaml_tree import KeyPath, Origin, Tree, key_path, read_file

if TYPE_CHECKING:
    from vigil_data.dataset.dataset import Dataset, Written
    from vigil_data.items import Item
    from vigil_data.media_files import MediaFolder
    from vigil_data.suites.specs import Suite

DEMO = "demo"
"""Name of the suite of the demonstration, in place of a file."""

DEMO_ITEMS = 300
DEMO_SEED = 1


class SuiteDataset(NamedTuple):
    """A suite as a dataset.

    Attributes:
        name: name of the suite.
        dataset: its items.
        facts: provenance, as text.
        descriptions: functionality to what it tests, where that is known.
    """

    name: str
    dataset: "Dataset"
    facts: dict[str, str]
    descriptions: dict[str, str]


def read_suite(path: StrPath, seed: int | None = None, *, allow_outside: bool = False) -> "Suite":
    """Read a suite's YAML and check it completely, including the files that it names.

    Args:
        path: the file.
        seed: random seed (default: the file's).
        allow_outside: whether it may name files outside its folder.

    Raises:
        UserError: one line ``FILE:LINE: key.path: problem`` for each mistake found.
    """
    from vigil_data.suites.build import unusable_files
    from vigil_data.suites.validation import ValidatedSuite

    path = Path(path)
    suite = read_spec(ValidatedSuite, path, "suite", "name: my-suite", {"seed": seed})
    if unusable := unusable_files(suite, _media_folder(path, allow_outside)):
        tree = read_file(path, [])
        raise UserError(*(f"{_origin(tree, key, path)}: {key_path(key)}: {what}" for key, what in unusable))
    return suite


def build_suite(
    path: StrPath,
    to: StrPath,
    seed: int | None = None,
    progress: ProgressCallback | None = None,
    *,
    allow_outside: bool = False,
) -> "Written":
    """Build the dataset of a suite's YAML.

    Args:
        path: the suite's file.
        to: folder of the new dataset.
        seed: random seed (default: the file's).
        progress: called with (task, done, total).
        allow_outside: whether the suite may name files outside its folder.

    Raises:
        UserError: for a mistake in the file, media that cannot be made or decoded, or an existing dataset.
    """
    suite = read_suite(path, seed, allow_outside=allow_outside)
    return _write(Path(to), _items(suite, Path(path), allow_outside, progress), str(path))


@contextmanager
def open_suite(
    suite: str,
    *,
    items: int = DEMO_ITEMS,
    seed: int | None = None,
    allow_outside: bool = False,
    check_labels: Callable[[Sequence[str], str], object] = lambda _labels, _name: None,
    progress: ProgressCallback | None = None,
) -> Iterator[SuiteDataset]:
    """Open a suite as a dataset; one that is built for this is removed afterwards.

    Args:
        suite: YAML file of a suite, folder of a dataset, or ``demo``.
        items: number of originals of the demonstration's suite.
        seed: random seed (default: the suite's, or 1 for the demonstration).
        allow_outside: whether a YAML file may name files outside its folder.
        check_labels: called with the suite's labels and name before anything is built; may raise.
        progress: called with (task, done, total).

    Raises:
        UserError: if there is no such suite, or it cannot be built.
    """
    from vigil_data.dataset.dataset import Dataset, exists

    path = Path(suite)
    if exists(path):
        dataset = Dataset(path)
        named = Path.cwd() / path
        yield SuiteDataset(named.name or named.resolve().name, dataset, {"suite": f"{path} version {dataset.version}"}, {})
        return
    if suite != DEMO and not path.is_file():
        what = "is a folder without a dataset" if path.is_dir() else why_not_a_file(path)
        raise UserError(f"{suite} {what}; name the YAML of a suite, a dataset's folder, or {DEMO}")
    with tempfile.TemporaryDirectory(prefix="vigil-suite-") as folder:
        built = Path(folder) / "dataset"
        if suite == DEMO:
            from vigil_data.demo.scenarios import LABELS
            from vigil_data.suites.demo import demo_items

            check_labels(LABELS, DEMO)
            seed = DEMO_SEED if seed is None else seed
            _write(built, demo_items(items, seed, progress), DEMO)
            yield SuiteDataset(DEMO, Dataset(built), {"suite": f"demonstration, seed {seed}"}, {})
            return
        spec = read_suite(path, seed, allow_outside=allow_outside)
        check_labels(tuple(spec.labels), spec.name)
        _write(built, _items(spec, path, allow_outside, progress), suite)
        descriptions = {name: test.description for name, test in spec.functionalities.items() if test.description}
        facts = {"suite": f"{path}, version {spec.version}, seed {spec.seed}"}
        yield SuiteDataset(spec.name, Dataset(built), facts, descriptions)


def _origin(tree: Tree | None, path: KeyPath, file: Path) -> Origin:
    """Return the origin of a value, or of the innermost block around it."""
    origin = Origin(str(file), 1)
    for part in path:
        inner = tree.value if tree is not None else None
        if isinstance(inner, dict):
            tree = inner.get(str(part))
        elif isinstance(inner, list) and isinstance(part, int):
            tree = inner[part]
        else:
            tree = None
        origin = (tree.origin if tree is not None else None) or origin
    return origin


def _items(suite: "Suite", path: Path, allow_outside: bool, progress: ProgressCallback | None) -> "Iterator[Item]":
    from vigil_data.suites.build import make

    return make(suite, _media_folder(path, allow_outside), progress=progress)


def _media_folder(path: Path, allow_outside: bool) -> "MediaFolder":
    from vigil_data.media_files import MediaFolder

    return MediaFolder(path.parent, allow_outside=allow_outside, fix_outside="move it there, or allow this with --allow-outside")


def _write(to: Path, items: "Iterable[Item]", name: str) -> "Written":
    """Write a suite's items; undecodable media are an error here, since a suite without them is incomplete."""
    from vigil_data.dataset.dataset import Dataset, exists, write

    if exists(to):
        raise UserError(f"dataset {to} already exists; name another folder")
    written = write(to, items)
    if written.quarantined:
        quarantine = Dataset(to).quarantine().to_pylist()
        reasons = (f"item {row['id']}: {row['modality']} {row['index']} cannot be decoded: {row['reason']}" for row in quarantine)
        raise UserError(*capped([f"{name}: {reason}" for reason in reasons]))
    return written
