"""Files of policy texts: a taxonomy in YAML, or the ``policy_text.json`` of an evaluation."""

from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath
from vigil_data.prompts.clauses import clauses_of
from vigil_data.taxonomy import Taxonomy
from vigil_data.yaml_files.read_spec import read_spec
from vigil_serving.bundle.load import Bundle
from vigil_serving.bundle.policy_text import LabelText, PolicyText, prompt_of, read_measured_text


def read_policy_text(path: StrPath, bundle: Bundle) -> PolicyText:
    """Read a file of policy texts for a guard; those of a taxonomy are not evaluated.

    Raises:
        UserError: if it cannot be read, a label has no text, or the bundle is not a guard.
    """
    path, sections = Path(path), prompt_of(bundle).pieces.sections
    if path.suffix == ".json":
        return read_measured_text(path)
    taxonomy = read_spec(Taxonomy, path, "taxonomy", "name: my-policy")
    try:
        clauses = clauses_of(taxonomy, lambda _: (), sections)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return PolicyText({clause.label: LabelText(clause.text) for clause in clauses})
