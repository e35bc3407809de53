"""``vigil verify``: nothing in a bundle was altered, and on this machine it still decides what the trained model decided."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_serving.bundle.load import Bundle, read_checked
from vigil_serving.bundle.manifest import files_of
from vigil_serving.bundle.metadata import Parity, Tolerance
from vigil_serving.parity import compare, golden
from vigil_serving.parity.backends import forms
from vigil_serving.parity.cases import Case


@dataclass(frozen=True, slots=True)
class Verification:
    """What was verified.

    Attributes:
        digest: SHA-256 of manifest.json, which stands for the whole bundle; a deployment can pin it.
        files: files whose hashes were recomputed.
        parity: how each form agreed with the golden outputs.
    """

    digest: str
    files: int
    parity: tuple[Parity, ...]


def verify(path: Path, progress: Callable[[str], None] | None = None, public_key: Path | None = None) -> Verification:
    """Recompute all hashes, decode the golden items, and run every form on the golden cases.

    Args:
        path: the bundle's folder.
        progress: called with the name of each step as it begins.
        public_key: a PEM file, if the bundle must be signed by its holder.

    Raises:
        UserError: for files changed, missing or added, a signature that is not the key's, and any form that disagrees with the
            golden outputs.
    """
    say = progress or (lambda _: None)
    say("files")
    bundle = read_checked(path, public_key)
    cases, expected = golden.read(path)
    say("decoding")
    if differences := golden.decoding_differences(cases, bundle.inputs):
        raise UserError(*(f"{path}: {line}" for line in differences), f"{path}: {_versions_hint(bundle)}")
    found = []
    for form in forms(bundle):
        say(form.name)
        try:
            found.append(_compare(form, cases, expected, bundle))
        except compare.ParityError as error:
            raise UserError(f"{path}: {error}") from None
    if failures := compare.failures(found):
        raise UserError(*(f"{path}: {line}" for line in failures))
    return Verification(bundle.digest, len(files_of(path)), tuple(found))


def _compare(form: compare.NamedForm, cases: list[Case], expected: list[NDArray[np.float32]], bundle: Bundle) -> Parity:
    """Compare a form with the trained model, or a less exact variant with what it gave at the export."""
    due = golden.read_given(bundle.path, cases, form.variant) or expected
    found = compare.outputs(form, cases, due)
    return compare.compare(form, found, cases, due, bundle, tolerance=_tolerance(form, bundle))


def _tolerance(form: compare.NamedForm, bundle: Bundle) -> Tolerance:
    """What may differ here: with 8 bits as much as quantisation made at the export, for kernels differ between CPUs."""
    if form.variant != "int8":
        return compare.TOLERANCES[form.variant]
    measured = [p.max_difference for p in bundle.signature.parity if p.variant == "int8"]
    return Tolerance(max(compare.OTHER_KERNELS, *measured), flips=1.0)


def _versions_hint(bundle: Bundle) -> str:
    libraries = ("tokenizers", "pillow", "soundfile", "soxr")
    return "exported with " + ", ".join(f"{name} {bundle.signature.versions.get(name, 'unknown')}" for name in libraries)
