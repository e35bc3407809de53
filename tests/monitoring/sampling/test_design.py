"""Designs are typed: every mistake has its line, and shares add up."""

from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_monitoring.sampling.design import Design, read_design


def test_shares_divide_what_audit_leaves() -> None:
    design = Design.model_validate(
        {
            "audit": 0.2,
            "purposes": [{"kind": "prevalence", "share": 0.5}, {"kind": "recall"}, {"kind": "action_precision"}],
        }
    )
    assert design.shares == pytest.approx((0.4, 0.2, 0.2))
    assert not design.compares


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "purposes:\n  - kind: prevalense\n",
            "2: purposes[0].kind: must be prevalence, action_precision, recall, ab_pair or mined, not",
        ),
        ("purposes:\n  - kind: prevalence\nfloors: 0.2\n", "3: floors: is not a key of a design (did you mean floor?)"),
        ("purposes:\n  - kind: prevalence\naudit: 0\n", "3: audit: must be at least 0.01, not 0"),
        ("purposes:\n  - kind: prevalence\nstrata:\n  bands: [0.5, 0.1]\n", "4: strata.bands: must rise"),
        ("purposes:\n  - kind: prevalence\nstrata:\n  least: 1\n", "4: strata.least: must be 0 or at least 2"),
        ("purposes:\n  - {kind: prevalence, share: 0.5}\n", "1: purposes have shares that add up to 0.5, not 1"),
        ("purposes:\n  - {kind: prevalence, share: 1}\n  - kind: recall\n", "1: purposes have shares that add up to 1 or more"),
        ("purposes:\n  - kind: ab_pair\n  - kind: ab_pair\n", "1: purposes has ab_pair twice"),
        ("purposes:\n  - kind: prevalence\n    weights: [views]\n", "3: purposes[0].weights[0]: must be items or exposure, not"),
        ("purposes: []\n", "1: purposes: must not be empty"),
    ],
)
def test_read_design_names_the_line_of_a_mistake(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "design.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_design(file)
    assert error.value.lines[0].startswith(f"{file}:{message}"), error.value.lines
