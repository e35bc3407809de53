"""The Python of docs/bundle-without-vigil.md runs as it stands there, without Vigil, and agrees with the golden cases."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vigil_serving.bundle import manifest

LAST = """
assert not [name for name in sys.modules if name.split(".")[0].startswith("vigil") or name == "torch"]
print(len(list(lines("items.jsonl"))), "golden cases")
"""


@pytest.fixture(scope="module")
def program(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code blocks of the page as one file."""
    page = (repository / "docs" / "bundle-without-vigil.md").read_text(encoding="utf-8")
    file = tmp_path_factory.mktemp("guide") / "guide.py"
    file.write_text("\n\n".join([*re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE), LAST]), encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["text, image and audio", "calibration by presence and a policy"])
def test_guide_reproduces_golden_decisions_without_vigil(program: Path, request: pytest.FixtureRequest, name: str) -> None:
    bundle = request.getfixturevalue("exported").bundle if "audio" in name else request.getfixturevalue("text_image_bundle")
    done = _run(program, bundle)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len((bundle / manifest.GOLDEN_ITEMS).read_text().splitlines())} golden cases\n"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("inputs.json", '"overlap": 4', '"overlap": 5'),
        ("inputs.json", '" grinning face "', '" new deal "'),
        ("inputs.json", '"fit": "crop"', '"fit": "squash"'),
        ("calibration.json", '"slope": 10.0', '"slope": 10.1'),
        ("policy.json", '"review": 0.5', '"review": 0.875'),
    ],
)
def test_guide_finds_what_differs(program: Path, text_image_bundle: Path, tmp_path: Path, file: str, old: str, new: str) -> None:
    """Each step of the page is checked: with another setting the golden cases disagree."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    for entry in text_image_bundle.iterdir():
        (folder / entry.name).symlink_to(entry)
    content = json.dumps(json.loads((folder / file).read_text()))
    assert old in content
    (folder / file).unlink()
    (folder / file).write_text(content.replace(old, new))
    done = _run(program, folder)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def _run(program: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(program), str(bundle)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
