"""A bundle written as a model repository of Triton, which is complete in itself: copy it to the server's storage as it is."""

import os
import re
import shutil
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from vigil_data.errors import UserError
from vigil_serving.bundle import manifest
from vigil_serving.bundle.load import Bundle, read_checked
from vigil_serving.triton.options import FACTS, FUSION, ONNX_FILE, VERSION, Plan, hash_of, model_name

MODEL_PY = '''"""Written by `vigil triton`: the glue is a part of vigil, which the Python backend's environment must hold."""

from vigil_serving.triton.python_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
COPIED = (
    manifest.SIGNATURE,
    manifest.TAXONOMY,
    manifest.THRESHOLDS,
    manifest.CALIBRATION,
    manifest.POLICY,
    manifest.INPUTS,
    manifest.TOKENIZER,
    manifest.CARD,
)
"""Files of a bundle that lie beside model.py."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def write_repository(bundle: Path, to: Path, *, name: str | None = None, **chosen: Any) -> list[str]:
    """Write a model repository; it appears under its name only when all is written and checked.

    Args:
        bundle: the bundle's folder, whose hashes are recomputed.
        to: the repository's folder, new or empty: a server may be reading an older one.
        name: of the model that clients ask; the bundle's name if not given.
        **chosen: see :class:`vigil_serving.triton.options.Plan`.

    Returns:
        The names of the models, the one that clients ask first.

    Raises:
        UserError: if the bundle was altered or has no such variant, the place is occupied, the name is not fit for Triton, or the
            extra ``vigil[triton]`` is not installed.
    """
    plan = Plan(**chosen)
    refuse_occupied(to)
    _need_schema()
    opened = read_checked(bundle)
    opened.encoders(plan.variant)
    called = name or opened.signature.name
    if not _NAME.fullmatch(called):
        raise UserError(f"{called}: not a name for a model of Triton (letters, digits, _ . -); give another one by --name")
    to = to.resolve()
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f".{to.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        models = _write(opened, partial, called, plan)
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return models


def refuse_occupied(to: Path) -> None:
    """Refuse a place where something lies.

    Raises:
        UserError: if ``to`` is a file, or a folder that holds something.
    """
    if to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise UserError(f"{to} is there already; name a new folder for the repository, for a server may be reading this one")


def _need_schema() -> None:
    try:
        import tritonclient.grpc.model_config_pb2  # noqa: F401
    except ImportError:
        raise UserError("Triton's schema is not installed; install it by `pip install 'vigil[triton]'`") from None


def _write(bundle: Bundle, to: Path, name: str, plan: Plan) -> list[str]:
    from vigil_serving.triton import config_pbtxt

    signature, longest = bundle.signature, bundle.inputs.text.max_tokens if bundle.inputs.text else 0
    graphs: dict[str, str] = {**{m: signature.variants[plan.variant][m] for m in signature.modalities}, FUSION: "fusion"}
    problems, models, told = [], [name], {"bundle": bundle.digest}
    for part, graph in graphs.items():
        folder = to / model_name(name, part)
        (folder / VERSION).mkdir(parents=True)
        shutil.copyfile(bundle.graph(graph), folder / VERSION / ONNX_FILE)
        told[hash_of(part)] = manifest.sha256(folder / VERSION / ONNX_FILE)
        facts = signature.graphs[graph]
        made = (
            config_pbtxt.fusion(folder.name, facts, plan)
            if part == FUSION
            else config_pbtxt.encoder(folder.name, facts, plan, longest)
        )
        config_pbtxt.write(made, folder)
        problems += config_pbtxt.differences(folder)
        models.append(folder.name)
    if problems:
        raise UserError(*problems)
    config_pbtxt.write(config_pbtxt.glue(name, len(signature.labels), plan, told), to / name)
    _copy_facts(bundle, to / name / VERSION / FACTS)
    (to / name / VERSION / "model.py").write_text(MODEL_PY, encoding="utf-8")
    config_pbtxt.read(to / name)
    (to / "README.md").write_text(_readme(bundle, name, models, plan), encoding="utf-8")
    return models


def _copy_facts(bundle: Bundle, to: Path) -> None:
    """What decides, and what says of it, with a manifest of its own; neither graphs nor golden cases."""
    for file in COPIED:
        if (bundle.path / file).is_file():
            (to / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / file, to / file)
    manifest.write_manifest(to)


def _readme(bundle: Bundle, name: str, models: list[str], plan: Plan) -> str:
    from jinja2 import Environment, StrictUndefined

    # Markdown, not HTML
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    template = environment.from_string(files("vigil_serving.triton").joinpath("readme.md.jinja").read_text(encoding="utf-8"))
    return template.render(bundle=bundle, name=name, models=models, plan=plan, vigil=version("vigil"))
