"""YAML files of one type each, read with all mistakes at once: site profiles, policies, suites, sources of datasets.

Example:
    >>> read_spec(Policy, Path("policy.yaml"), "policy", "name: my-policy")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import Discriminator, ValidationError
from pydantic.fields import FieldInfo

from vigil_data.errors import UserError
from vigil_data.specs import Spec
from vigil_data.yaml_files.validation_errors import translate_errors
from vigil_data.yaml_files.yaml_tree import Origin, Tree, read_file

COMMAND_LINE = "command line"
AnySpec = TypeVar("AnySpec", bound=Spec)


def read_spec(  # noqa: PLR0917 (the file, and values in place of it)
    spec: type[AnySpec],
    path: Path | None,
    kind: str,
    example: str,
    values: Mapping[str, Any] | None = None,
    source: str = COMMAND_LINE,
) -> AnySpec:
    """Read a file of another kind (a site profile, a policy, a suite) with the same errors as recipes.

    Args:
        spec: type of the content.
        path: the file; ``None`` for the defaults only.
        kind: what the file is, for messages.
        example: a key and value of such a file, for messages.
        values: values from the command line, by key; they replace the file's, and ``None`` is ignored.
        source: where the values come from, for messages.

    Raises:
        UserError: one line ``FILE:LINE: key.path: what`` for each mistake found.
    """
    mistakes: list[str] = []
    origin = Origin(source if path is None else str(path), None if path is None else 1)
    tree = None if path is None else read_file(path, mistakes, kind=kind, example=example)
    given = {key: plain_tree(value).value for key, value in (values or {}).items() if value is not None}
    overrides = Tree({key: Tree(value, Origin(source)) for key, value in given.items()})
    merged = merge(merge(defaults(spec), tree or Tree({}, origin)), overrides)
    return validate_tree(spec, merged, origin, tree is not None or path is None, mistakes)


def merge(base: Tree, over: Tree) -> Tree:
    """Merge ``over`` into ``base``: mappings key by key unless ``kind`` changes; anything else replaces."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    if _kind(over) is not None and _kind(base) is not None and _kind(over) != _kind(base):
        return over
    merged = dict(base.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Tree(merged, over.origin or base.origin)


def defaults(spec: type[Spec]) -> Tree:
    """Return the defaults of a spec, including those inside required blocks."""
    tree: dict[str, Tree] = {}
    for name, field in spec.model_fields.items():
        if not field.is_required():
            default = field.get_default(call_default_factory=True, validated_data={})
            tree[name] = plain_tree(default.model_dump(mode="json") if isinstance(default, Spec) else default)
        elif (block := _required_block(field)) is not None:
            inner = defaults(block)
            if inner.value:
                tree[name] = inner
    return Tree(tree)


def _required_block(field: FieldInfo) -> type[Spec] | None:
    """Return the spec of a required block; of several kinds, that of a block that names none."""
    if isinstance(field.annotation, type) and issubclass(field.annotation, Spec):
        return field.annotation
    tag = next((each for each in field.metadata if isinstance(each, Discriminator)), None)
    if tag is None or not callable(tag.discriminator):
        return None
    members: list[type[Spec]] = [get_args(member)[0] for member in get_args(field.annotation)]
    return next(member for member in members if member.model_fields["kind"].default == tag.discriminator({}))


def _kind(tree: Tree) -> str | None:
    kind = tree.value.get("kind") if isinstance(tree.value, dict) else None
    return kind.value if kind and isinstance(kind.value, str) else None


def plain_tree(value: Any) -> Tree:
    """Return plain data as a tree without origins."""
    if isinstance(value, dict):
        return Tree({key: plain_tree(child) for key, child in value.items()})
    if isinstance(value, list | tuple):
        return Tree([plain_tree(child) for child in value])
    return Tree(value)


def validate_tree(spec: type[AnySpec], tree: Tree, file: Origin, complete: bool, mistakes: list[str]) -> AnySpec:
    """Validate a merged tree; if a file could not be read, keys that it might have had are not reported as missing."""
    try:
        value = spec.model_validate_json(json.dumps(tree.plain()), strict=True)
    except ValidationError as error:
        mistakes += translate_errors(error, spec, tree, file, complete)
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))
    return value
