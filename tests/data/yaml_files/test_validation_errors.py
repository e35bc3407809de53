"""Messages of every kind of YAML: a wrong key names the kind of file, and a percentage leads to the share."""

from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_data.specs import Spec
from vigil_data.suites.validation import ValidatedSuite
from vigil_data.yaml_files.read_spec import read_spec
from vigil_evaluation.policy.specs import Policy
from vigil_evaluation.specs import CalibrationSpec, EvaluationSpec
from vigil_slurm.site import Site

POLICY = """\
name: forum
confidence: %s
actions:
  review:
    must: [%s]
labels: {spam: [review]}
"""


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (Policy, "a policy"),
        (Site, "a site"),
        (ValidatedSuite, "a suite"),
        (EvaluationSpec, "an evaluation block"),
        (CalibrationSpec, "a calibration block"),
    ],
)
def test_read_spec_names_the_kind_of_file_in_which_a_key_is_unknown(spec: type[Spec], name: str, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("zzz: 1\n", encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_spec(spec, file, "file", "name: x")
    (line,) = [line for line in raised.value.lines if "zzz" in line]
    assert line.startswith(f"{file}:1: zzz: is not a key of {name}")


@pytest.mark.parametrize("number", ["80", "80.0"])
def test_read_spec_hints_at_the_share_where_a_percentage_was_written(number: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY % (number, f"recall at least {number}, precision at least {number} %"), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_spec(Policy, file, "policy", "name: forum")
    assert list(raised.value.lines) == [
        f"{file}:2: confidence: must be less than 1, not {number} (did you mean 0.8, which is 80 %?)",
        f"{file}:5: actions.review.must[0].bound: must be at most 1, not 80.0 (did you mean 0.8, which is 80 %?)",
    ]


def test_read_spec_gives_no_hint_for_a_number_that_is_no_percentage(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("precision: 1\nfalse_positive_rate: 200\nconfidence: 0.2\n", encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_spec(EvaluationSpec, file, "file", "name: x")
    assert len(raised.value.lines) == 3
    assert "did you mean" not in str(raised.value)
