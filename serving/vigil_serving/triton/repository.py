"""Write a bundle as a Triton model repository, which is self-contained: copy it to the server's storage."""

import re
import shutil
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, replaced_folder, sha256_file
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import Bundle, load_bundle
from vigil_serving.triton.options import (
    BUNDLE_FOLDER,
    DEFAULTS,
    FUSION,
    ONNX_FILE,
    VERSION,
    ModelRepositoryOptions,
    hash_parameter,
    model_name,
)

MODEL_PY = '''"""Written by `vigil triton`; the environment of the Python backend must contain vigil."""

from vigil_serving.triton.python_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
DECISION_FILES = (
    manifest.METADATA,
    manifest.TAXONOMY,
    manifest.THRESHOLDS,
    manifest.CALIBRATION,
    manifest.POLICY,
    manifest.INPUTS,
    manifest.TOKENIZER,
    manifest.MODEL_CARD,
)
"""Files of a bundle that are copied next to model.py."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def write_repository(
    bundle: StrPath, to: StrPath, *, name: str | None = None, options: ModelRepositoryOptions = DEFAULTS
) -> list[str]:
    """Write a model repository; it is renamed into place when all of it is written and checked.

    Args:
        bundle: the bundle's folder, whose hashes are recomputed.
        to: the repository's folder, new or empty, since a server may be reading an older one.
        name: name of the model that clients call (default: the bundle's name).
        options: options of the repository.

    Returns:
        The names of the models, starting with the one that clients call.

    Raises:
        UserError: if the bundle was altered or has no such variant, ``to`` is occupied, the name is not valid in Triton, or the
            extra ``vigil[triton]`` is not installed.
    """
    to = Path(to)
    check_target(to)
    _check_schema_installed()
    opened = load_bundle(bundle)
    if opened.prompt is not None:
        raise UserError(
            f"{bundle}: a guard, whose language model reads rows of prompts, which Triton cannot join into batches; "
            "serve it with `vigil serve`"
        )
    opened.encoders(options.variant)
    name = name or opened.metadata.name
    if not _NAME.fullmatch(name):
        raise UserError(f"{name}: not a valid name of a Triton model (letters, digits, _ . -); give another one with --name")
    with replaced_folder(to) as partial:
        return _write_models(opened, partial, name, options)


def check_target(to: StrPath) -> None:
    """Check that a repository can be written to a path.

    Raises:
        UserError: if ``to`` is a file, or a folder that is not empty.
    """
    to = Path(to)
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise UserError(f"{to} already exists; name a new folder for the repository, since a server may be reading this one")


def _check_schema_installed() -> None:
    try:
        import tritonclient.grpc.model_config_pb2  # noqa: F401
    except ImportError:
        raise UserError("Triton's schema is not installed; install it with `pip install 'vigil[triton]'`") from None


def _write_models(bundle: Bundle, to: Path, name: str, options: ModelRepositoryOptions) -> list[str]:
    from vigil_serving.triton import config_pbtxt

    longest = bundle.inputs.text.max_tokens if bundle.inputs.text else 0
    graphs: dict[str, str] = {**bundle.variants[options.variant], FUSION: "fusion"}
    problems, models, parameters = [], [name], {"bundle": bundle.digest}
    for part in (*bundle.modalities, FUSION):
        folder, graph = to / model_name(name, part), bundle.graphs[graphs[part]]
        (folder / VERSION).mkdir(parents=True)
        shutil.copyfile(bundle.graph(graphs[part]), folder / VERSION / ONNX_FILE)
        if (weights := bundle.weights(graphs[part])) is not None:
            shutil.copyfile(weights, folder / VERSION / weights.name)
        parameters[hash_parameter(part)] = sha256_file(folder / VERSION / ONNX_FILE)
        config = (
            config_pbtxt.fusion_config(folder.name, graph, options)
            if part == FUSION
            else config_pbtxt.encoder_config(folder.name, graph, options, longest)
        )
        config_pbtxt.write_config(config, folder)
        problems += config_pbtxt.differences(folder)
        models.append(folder.name)
    if problems:
        raise UserError(*problems)
    config_pbtxt.write_config(config_pbtxt.python_config(name, len(bundle.labels), options, parameters), to / name)
    _copy_decision_files(bundle, to / name / VERSION / BUNDLE_FOLDER)
    (to / name / VERSION / "model.py").write_text(MODEL_PY, encoding="utf-8")
    config_pbtxt.read_config(to / name)
    (to / "README.md").write_text(_readme(bundle, name, models, options), encoding="utf-8")
    return models


def _copy_decision_files(bundle: Bundle, to: Path) -> None:
    """Copy the files that decide and that describe the bundle, with their own manifest, without graphs and golden cases."""
    for file in DECISION_FILES:
        if (bundle.path / file).is_file():
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / file, to / file)
    manifest.write_manifest(to)


def _readme(bundle: Bundle, name: str, models: list[str], options: ModelRepositoryOptions) -> str:
    from jinja2 import Environment, StrictUndefined

    # Markdown, not HTML
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    template = environment.from_string(files("vigil_serving.triton").joinpath("readme.md.jinja").read_text(encoding="utf-8"))
    return template.render(bundle=bundle, name=name, models=models, options=options, vigil=version("vigil"))
