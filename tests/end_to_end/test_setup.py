"""Dependencies: the pinned versions satisfy the declared bounds, and everything that is imported is declared."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

USED = (
    "card",
    "deepspeed",
    "gguf",
    "language",
    "lora",
    "mlflow",
    "monitor",
    "ocr",
    "openlineage",
    "pdq",
    "qlora",
    "ray",
    "serve",
    "sign",
    "sweep",
    "tensorboard",
    "train",
    "transcribe",
    "triton",
)
"""The extras whose packages Vigil imports; dev is for its tests, and demo for its data."""
ROOTS = ("app", "data", "evaluation", "modeling", "monitoring", "serving", "slurm", "training")


def declared(repository: Path, *extras: str) -> dict[str, Requirement]:
    """The requirements of the core and of the extras, including the extras that those name."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: dict[str, Requirement] = {}
    waiting, seen = [*project["dependencies"], f"vigil[{','.join(extras)}]" if extras else "numpy"], set()
    while waiting:
        requirement = Requirement(waiting.pop())
        if requirement.name == "vigil":
            waiting += [line for extra in requirement.extras - seen for line in project["optional-dependencies"][extra]]
            seen |= requirement.extras
        elif requirement.name not in found:
            found[normal(requirement.name)] = requirement
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_satisfy_the_declared_bounds(repository: Path) -> None:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {normal(name): Version(version) for name, version in (line.split("==") for line in lines)}
    for name, requirement in declared(repository, "dev").items():
        assert name in pinned, f"{name} is not pinned"
        assert pinned[name] in requirement.specifier, f"{name}=={pinned[name]} is outside {requirement}"


def test_imports_are_declared_dependencies(repository: Path) -> None:
    distributions = packages_distributions()
    known = set(declared(repository, *USED, "demo"))
    undeclared = set()
    for file in (file for root in ROOTS for file in (repository / root).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.partition(".")[0] for name in names}:
                # Triton's Python backend provides this module to its models.
                if top in sys.stdlib_module_names or top.partition("_")[0] == "vigil" or top == "triton_python_backend_utils":
                    continue
                if not known & {normal(name) for name in distributions.get(top, [top])}:
                    undeclared.add(f"{file.relative_to(repository)}: {top}")
    assert undeclared == set()


def test_declared_dependencies_are_imported(repository: Path) -> None:
    text = "\n".join(file.read_text(encoding="utf-8") for root in ROOTS for file in (repository / root).rglob("*.py"))
    imports: dict[str, list[str]] = {}
    for top, names in packages_distributions().items():
        for name in names:
            imports.setdefault(normal(name), []).append(top)
    # timm needs torchvision, torch.onnx needs onnxscript and Lightning's logger tensorboard, and none declares it.
    used_otherwise = {"torchvision", "onnxscript", "tensorboard"}
    # Not installed here: their extras are for machines that transcribe, or train on a GPU.
    used_otherwise |= {"faster-whisper", "bitsandbytes"}
    unused = [
        name
        for name in declared(repository, *USED)
        if name not in used_otherwise
        and not any(re.search(rf"\b(import|from) {re.escape(top)}\b", text) for top in imports.get(name, []))
    ]
    assert unused == []
