"""Cache of export steps: each leaves its files, their hashes, and a key of everything that they depend on.

The work folder is next to the target (``.NAME.export``). A step's folder is renamed into place atomically, so after a kill a step
is complete or absent. A later export takes it over if its key and hashes match, and runs it again otherwise.
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vigil_data.errors import UserError
from vigil_data.filesystem import link_or_copy, locked, recover_folder, remove, sha256_file, sha256_json, write_json
from vigil_data.items import Item
from vigil_data.progress import ProgressCallback
from vigil_data.specs import Inputs
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_serving.bundle.load import WEIGHTS_SUFFIX
from vigil_serving.bundle.manifest import list_files, read_json
from vigil_serving.export.modules import prompt_settings, tokenizer_file

RECORD = "step.json"

LIBRARIES = (
    "vigil",
    "torch",
    "torchaudio",
    "transformers",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "tokenizers",
    "pillow",
    "soundfile",
    "soxr",
)

StepReport = Callable[[str, float | None], None]
"""Called with a finished step's name and the seconds that it took, or ``None`` if it was kept from an earlier export."""


@dataclass(frozen=True, slots=True)
class Step:
    """A finished step.

    Attributes:
        name: what was made.
        key: hash of everything that its files depend on.
        folder: its files.
    """

    name: str
    key: str
    folder: Path


class StepCache:
    """Steps of one export.

    Args:
        folder: the work folder.
        base: what every step depends on (weights, libraries, inputs); JSON.
        progress: called with a step's name as it starts.
        report: called with each finished step and its time.
    """

    def __init__(
        self,
        folder: Path,
        base: Mapping[str, Any],
        progress: ProgressCallback | None = None,
        report: StepReport | None = None,
    ) -> None:
        self.folder = folder
        self.progress: ProgressCallback = (lambda *_: None) if progress is None else progress
        self._base = base
        self._report: StepReport = (lambda *_: None) if report is None else report

    def run(
        self,
        name: str,
        make: Callable[[Path], None],
        *,
        depends_on: Mapping[str, Any] | None = None,
        after: Sequence[Step] = (),
    ) -> Step:
        """Run a step, or take over the files of an earlier export.

        Args:
            name: what is made.
            make: fills the folder that it is given.
            depends_on: what this step depends on besides what all steps do; JSON.
            after: earlier steps whose files it uses.
        """
        key = sha256_json({"base": self._base, "of": depends_on, "after": [step.key for step in after], "name": name})
        step = Step(name, key, self.folder / "steps" / name.replace(" ", "-").replace(",", "").replace("/", "-"))
        self.progress(name, 0, None)
        if _is_intact(step):
            self._report(name, None)
            return step
        start = time.perf_counter()
        partial = step.folder.with_name(step.folder.name + ".partial")
        remove(step.folder)
        remove(partial)
        partial.mkdir(parents=True)
        make(partial)
        write_json(partial / RECORD, {"key": key, "files": _hashes(partial)})
        partial.rename(step.folder)
        self._report(name, time.perf_counter() - start)
        return step

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Report the time of work that is too short to be cached."""
        self.progress(name, 0, None)
        start = time.perf_counter()
        yield
        self._report(name, time.perf_counter() - start)


def link_files(step: Step, to: Path, skip: str = "") -> None:
    """Link the files of a step, except ``skip``, into a folder; copy them where the file system has no hard links."""
    for file in list_files(step.folder):
        if file not in (RECORD, skip):
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            if file.endswith(WEIGHTS_SUFFIX):  # onnx reads no weights from a file that has another name, too
                shutil.copyfile(step.folder / file, to / file)
            else:
                link_or_copy(step.folder / file, to / file)


@contextmanager
def open_step_cache(
    to: Path,
    base: Mapping[str, Any],
    *,
    restart: bool = False,
    progress: ProgressCallback | None = None,
    report: StepReport | None = None,
) -> Iterator[StepCache]:
    """Open the work folder of an export to ``to`` for this process alone; it is removed if the block succeeds.

    Args:
        to: the bundle.
        base: see :class:`StepCache`.
        restart: discard what an interrupted export left.
        progress: see :class:`StepCache`.
        report: see :class:`StepCache`.

    Raises:
        UserError: if another export to the same place is running.
    """
    to = to.resolve()
    folder = to.with_name(f".{to.name}.export")
    with locked(folder / "lock", f"{to}: another export to it is running ({{owner}}); wait for it or name another folder"):
        recover_folder(to)
        if restart:
            remove(folder / "steps")
        yield StepCache(folder, base, progress, report)
        remove(folder)


def model_fingerprint(network: MultimodalModel, inputs: Inputs) -> dict[str, Any]:
    """Return what every step of an export depends on, as JSON: weights, architecture, decoding and libraries."""
    hashed = hashlib.sha256(repr(network).encode())
    for name, tensor in sorted(network.state_dict().items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    tokenizer = tokenizer_file(inputs)
    return {
        "model": hashed.hexdigest(),
        "inputs": inputs.model_dump(mode="json"),
        "tokenizer": None if tokenizer is None else sha256_file(tokenizer),
        "replacements": sha256_json(dict(inputs.text.normalize.replacements)) if inputs.text and inputs.text.normalize else None,
        "prompt": None if (prompt := prompt_settings(network)) is None else asdict(prompt),
        "versions": library_versions(),
    }


def items_fingerprint(items: Sequence[Item]) -> str:
    """Return the SHA-256 of items with their media, targets and columns."""
    hashed = hashlib.sha256()
    for item in items:
        hashed.update(repr((item.id, item.text, sorted(item.targets.items()), sorted(item.columns.items()))).encode())
        for medium in (*item.image, *item.audio):
            hashed.update(hashlib.sha256(medium).digest())
    return hashed.hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that export, decode and compare."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _is_intact(step: Step) -> bool:
    if not (step.folder / RECORD).is_file():
        return False
    try:
        record, hashes = read_json(step.folder / RECORD), _hashes(step.folder)
    except UserError:
        return False
    return isinstance(record, dict) and record.get("key") == step.key and record.get("files") == hashes


def _hashes(folder: Path) -> dict[str, str]:
    return {file: sha256_file(folder / file) for file in list_files(folder) if file != RECORD}
