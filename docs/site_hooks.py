"""MkDocs hooks that add the generated pages: commands, recipe keys, API, and an example of the report.

MkDocs calls the functions ``on_…``; mkdocs.yml names this file. Nothing imports torch and nothing is fetched.
"""

import ast
import json
import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any, NamedTuple

from griffe import Extension

if TYPE_CHECKING:
    from griffe import Object
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "vigil": "app",
    "vigil_training": "training",
    "vigil_slurm": "slurm",
    "vigil_serving": "serving",
    "vigil_evaluation": "evaluation",
    "vigil_modeling": "modeling",
    "vigil_data": "data",
}
"""Package to its source root."""

EXAMPLE_REPORT = "example-report.html"

# Warnings on this logger are errors in strict mode.
_LOGGER = logging.getLogger("mkdocs.hooks.vigil")

_REMOTE_ASSET = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//|<link[^>]+rel=["']?(?:stylesheet|icon|preload)["']?[^>]+href=["']?(?:https?:)?//"""
)
_SPHINX_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`~?([^`]+)`")


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages: dict[str, str | bytes] = {
        "reference/cli.md": cli_page(),
        "reference/recipe-keys.md": recipe_page(),
        EXAMPLE_REPORT: example_report(),
        **{f"reference/api/{package}.md": api_page(package) for package in PACKAGES},
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:  # noqa: ARG001 (called by name)
    """Adapt GitHub's Markdown: lists without a blank line before them, and links to files outside docs/."""
    return code_for_outside_links(blank_line_before_lists(markdown), page.file.src_uri)


def on_post_page(output: str, page: "Page", config: "MkDocsConfig") -> str:  # noqa: ARG001 (called by name)
    """Warn of anything that a browser would fetch from the network."""
    for found in _REMOTE_ASSET.finditer(output):
        _LOGGER.warning("%s loads a remote asset: %s", page.file.src_uri, found[0])
    return output


def blank_line_before_lists(markdown: str) -> str:
    """Insert the blank line that Python-Markdown requires before a list and GitHub does not."""
    lines, fenced, previous = [], False, ""
    for line in markdown.split("\n"):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        item = re.match(r"(?:[-*+]|\d+\.) ", line)
        if item and not fenced and previous.strip() and not re.match(r"\s*(?:[-*+]|\d+\.) |\s{2,}", previous):
            lines.append("")
        lines.append(line)
        previous = line
    return "\n".join(lines)


def code_for_outside_links(markdown: str, source: str) -> str:
    """Replace links to files outside docs/, which the site does not have, by their path; warn of those that do not exist."""
    folder = (ROOT / "docs" / source).parent

    def replace(link: re.Match[str]) -> str:
        target = (folder / link[2].partition("#")[0]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        if not target.exists():
            _LOGGER.warning("%s links to %s, which does not exist", source, link[2])
        path = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else link[2]
        text = link[1].strip("`")
        return f"`{path}`" if text.rstrip("/") in path else f"{link[1]} (`{path}`)"

    return re.sub(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)", replace, markdown)


class SphinxRoles(Extension):
    """Griffe extension that shows the Sphinx roles of docstrings, such as ``:func:`x```, as code."""

    def on_object(self, *, obj: "Object", **_: Any) -> None:
        """Rewrite the docstring of an object when it is loaded."""
        if obj.docstring is not None:
            obj.docstring.value = _SPHINX_ROLE.sub(r"`\1`", obj.docstring.value)


# Commands


def cli_page() -> str:
    """Return the page of all commands, from the typer application."""
    import typer

    from vigil.cli import build

    group = typer.main.get_command(build())
    lines = ["# Commands", "", *_paragraphs(group.help), "", "| command | description |", "|---|---|"]
    commands = list(_commands("vigil", group))
    anchors = [name.lower().replace(" ", "-") for name, _ in commands]
    lines += [
        f"| [`{name}`](#{anchor}) | {_first_sentence(command.help)} |"
        for (name, command), anchor in zip(commands, anchors, strict=True)
    ]
    lines += ["", "Exit status: 0 success; 1 failure while running; 2 user error; 85 preempted, requeue; 130 interrupted."]
    for name, command in commands:
        lines += ["", f"## {name}", "", *_command_section(name, command)]
    return "\n".join(lines) + "\n"


def _commands(prefix: str, group: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and command of every leaf."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(f"{prefix} {name}", command)
        else:
            yield f"{prefix} {name}", command


def _command_section(name: str, command: Any) -> list[str]:
    context = command.context_class(command, info_name=name)
    usage = re.sub(r"\{(.*?)\}", r"\1", command.get_usage(context).removeprefix("Usage: "))
    lines = ["```", usage, "```", "", *_paragraphs(command.help)]
    records = [(parameter.param_type_name, parameter.get_help_record(context)) for parameter in command.params]
    for kind, heading in (("argument", "Argument"), ("option", "Option")):
        rows = [record for of, record in records if of == kind and record is not None]
        if rows:
            lines += ["", f"| {heading} | description |", "|---|---|"]
            lines += [f"| `{_cell(_declaration(declaration))}` | {_cell(_plain(text))} |" for declaration, text in rows]
    return lines


def _declaration(text: str) -> str:
    """Replace the type that Typer adds to an option by a placeholder (``--seed INT``), and drop it from an argument."""
    return re.sub(r" <(\w+)[^>]*>", lambda found: f" {found[1].upper()}" if text.startswith("-") else "", text)


def _paragraphs(text: str | None) -> list[str]:
    """Return help text as Markdown; indented paragraphs are code."""
    paragraphs = [paragraph for paragraph in _plain(text or "").split("\n\n") if paragraph.strip()]
    return "\n\n".join(f"```\n{p}\n```" if p.startswith(" ") else p for p in paragraphs).split("\n")


def _plain(text: str) -> str:
    """Remove rich's style tags; ``[bold]x[/]`` is bold."""
    text = re.sub(r"\[bold\](.*?)\[/(?:bold)?\]", r"**\1**", text)
    return re.sub(r"\[cyan\](.*?)\[/(?:cyan)?\]", r"`\1`", text)


def _first_sentence(text: str | None) -> str:
    return _cell(re.split(r"(?<=[.:;]) ", _plain(text or "").split("\n\n")[0])[0].rstrip(":;"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# Recipe keys


class _Block(NamedTuple):
    """A block of keys: where it first occurs in a recipe, and its JSON Schema."""

    path: str
    schema: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Heading of its section."""
        kind = self.schema["properties"].get("kind", {}).get("const")
        return f"{self.path}: {kind}" if kind else self.path


def recipe_page() -> str:
    """Return the page of all keys of a recipe, from its pydantic models."""
    from vigil_training.recipe.recipe import Recipe

    schema = Recipe.model_json_schema()
    blocks = _blocks(schema)
    lines = [
        "# Recipe keys",
        "",
        "All keys of a recipe with type and default. [Recipes](../recipes.md) explains how to write one. A key without a default",
        "is required. `vigil recipe check` reports every violation with its line.",
        "",
        *_key_table(schema, blocks),
    ]
    for block in blocks.values():
        lines += ["", f"## {block.title}", "", _text(block.schema.get("description", "")), ""]
        lines += _key_table(block.schema, blocks) if block.schema["properties"] else ["No keys."]
    return "\n".join(lines) + "\n"


def _blocks(schema: Mapping[str, Any]) -> dict[str, _Block]:
    """Return definitions by name in the order in which a recipe has them, each at its first path."""
    blocks: dict[str, _Block] = {}

    def visit(path: str, properties: Mapping[str, Any]) -> None:
        for key, value in properties.items():
            where = f"{path}.{key}" if path else key
            found = [name for name in _references(value) if name not in blocks]
            for name in found:
                blocks[name] = _Block(f"{where}.NAME" if _values(value) else where, schema["$defs"][name])
            for name in found:
                visit(blocks[name].path, schema["$defs"][name].get("properties", {}))

    visit("", schema["properties"])
    return {name: block for name, block in blocks.items() if "properties" in block.schema}


def _references(node: Any) -> list[str]:
    """Return the names of the definitions that a schema refers to."""
    if isinstance(node, Mapping):
        own = [node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else []
        return own + [
            name for key, child in node.items() if key not in {"default", "discriminator"} for name in _references(child)
        ]
    return [name for child in node for name in _references(child)] if isinstance(node, list) else []


def _key_table(schema: Mapping[str, Any], blocks: Mapping[str, _Block]) -> list[str]:
    required = schema.get("required", [])
    lines = ["| key | type | default | description |", "|---|---|---|---|"]
    for key, value in schema["properties"].items():
        links = [f"[{blocks[n].title}](#{_anchor(blocks[n].title)})" for n in _references(value) if n in blocks]
        default = "" if key in required or "default" not in value else _default(value["default"], bool(links))
        lines.append(f"| `{key}` | {_type(value, links)} | {default} | {_cell(_text(value.get('description', '')))} |")
    return lines


def _default(value: Any, is_block: bool) -> str:
    if is_block and isinstance(value, dict):
        return f"`{{kind: {value['kind']}}}`" if "kind" in value else "all defaults"
    return f"`{_cell(json.dumps(value, ensure_ascii=False))}`"


def _type(schema: Mapping[str, Any], links: list[str]) -> str:
    """Return the type of a key in words, with its bounds; links replace the names of blocks."""
    values = _values(schema)
    if links:
        null = ["null"] if any(option.get("type") == "null" for option in schema.get("anyOf", [])) else []
        kind = "mapping of names to " if values else "list of " if schema.get("type") == "array" else ""
        return kind + " or ".join(links + null)
    if "anyOf" in schema:
        return " or ".join(_type(option, []) for option in schema["anyOf"])
    if options := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(f"`{option}`" for option in options)
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items') or schema.get('prefixItems', [{}])[0], [])}"
    if schema.get("type") == "object":
        return f"mapping of names to {_type(values, [])}" if isinstance(values, Mapping) else "mapping"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {schema[name]:.10g}" for name, sign in bounds.items() if name in schema)
    return f"{schema.get('type', 'any')} {limits}".strip()


def _values(schema: Mapping[str, Any]) -> Any:
    """Return the schema of the values of a mapping with free keys; ``None`` for another schema."""
    return schema.get("additionalProperties") or next(iter(schema.get("patternProperties", {}).values()), None)


def _text(description: str) -> str:
    """Return a description as one Markdown paragraph, with code spans of Markdown."""
    return " ".join(_SPHINX_ROLE.sub(r"`\1`", description).replace("``", "`").split())


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


# API


def api_page(package: str) -> str:
    """Return the page of a package's public names, each documented in the innermost package that exports it."""
    lines = [f"# {package}"]
    for module, init in _package_inits(package):
        names = public_names(module)
        if module != package and not names:
            continue
        lines += ["", f"## {module}", ""] if module != package else [""]
        lines += [_docstring(ast.get_docstring(_syntax(init)) or ""), ""]
        elsewhere = [name for name, origin in names.items() if _home(origin, name) != module]
        lines += [f"- [`{name}`][{names[name]}.{name}]" for name in elsewhere]
        for name, origin in names.items():
            lines += ["", f"::: {origin}.{name}"] if name not in elsewhere else []
    return "\n".join(lines) + "\n"


@cache
def public_names(module: str) -> dict[str, str]:
    """Return the names that a package's ``__init__.py`` defines or re-exports, each with the module that defines it."""
    tree = _syntax(_package_path(module) / "__init__.py")
    names = {name: origin for name, (origin, exported) in _imports(tree).items() if exported}
    names |= {s.name: module for s in tree.body if isinstance(s, ast.ClassDef | ast.FunctionDef) and not s.name.startswith("_")}
    names = {name: _defining_module(name, origin) for name, origin in sorted(names.items())}
    for name, origin in names.items():
        if name not in _definitions(origin):
            _LOGGER.warning("%s re-exports %s, which %s does not define", module, name, origin)
    return {name: origin for name, origin in names.items() if name in _definitions(origin)}


@cache
def _home(origin: str, name: str) -> str:
    """Return the package whose section documents a name: the innermost around its module, otherwise any that exports it."""
    exporting = [m for package in PACKAGES for m, _ in _package_inits(package) if public_names(m).get(name) == origin]
    return max(exporting, key=lambda module: (f"{origin}.".startswith(f"{module}."), len(module)))


def _imports(tree: ast.Module) -> dict[str, tuple[str, bool]]:
    """Return name to the module that it is imported from, and whether it is re-exported (``import X as X``)."""
    return {
        alias.name: (node.module, alias.asname == alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES
        for alias in node.names
    }


def _defining_module(name: str, module: str) -> str:
    """Follow re-exports to the module that defines a name."""
    init = _package_path(module) / "__init__.py"
    if init.exists() and name not in _definitions(module) and name in (imports := _imports(_syntax(init))):
        return _defining_module(name, imports[name][0])
    return module


@cache
def _definitions(module: str) -> set[str]:
    """Return the names that a module defines at its top level."""
    path = _package_path(module)
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: set[str] = set()
    for statement in _syntax(source).body if source.exists() else []:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            names.add(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@cache
def _syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _package_path(module: str) -> Path:
    return ROOT / PACKAGES[module.split(".", maxsplit=1)[0]] / module.replace(".", "/")


def _package_inits(package: str) -> list[tuple[str, Path]]:
    top = ROOT / PACKAGES[package] / package
    inits = sorted(top.rglob("__init__.py"), key=lambda path: path.parent)
    return [(".".join((package, *path.parent.relative_to(top).parts)), path) for path in inits]


def _docstring(text: str) -> str:
    """Return a module's docstring as Markdown; its examples are blocks of code."""
    text = _SPHINX_ROLE.sub(r"`\1`", text).replace("``", "`")

    def block(example: re.Match[str]) -> str:
        return f"```pycon\n{dedent(example[1]).rstrip()}\n```\n\n"

    return re.sub(r"^Examples?:\n((?:    .*\n?|\n)+)", block, text, flags=re.MULTILINE)


# Example of the report


def example_report() -> bytes:
    """Return an evaluation report of synthetic scores, whose every number is random."""
    from tempfile import TemporaryDirectory

    import numpy as np
    import pyarrow as pa

    from vigil_evaluation.evaluate import evaluate_data
    from vigil_evaluation.evaluation_data import EvaluationData
    from vigil_evaluation.report import render_evaluation_page
    from vigil_evaluation.specs import EvaluationSpec

    random, rows = np.random.default_rng(0), 3000
    language, presence = random.choice(["en", "de", "hi"], rows), random.choice(["text", "text+image", "text+audio"], rows)
    table: dict[str, Any] = {"id": [f"post-{i}" for i in range(rows)], "presence": presence, "language": language}
    prevalences = {"spam": 0.2, "promotion": 0.1, "scam": 0.05}
    for label, prevalence in prevalences.items():
        targets = random.random(rows) < prevalence
        weak = (language == "hi") & (presence == "text+image")
        # The posterior log-odds of two normal distributions, except for one slice on which the model is weak.
        signal = random.normal(np.where(targets & ~weak, 2.0, -1.5), 1.2)
        logits = 3.5 / 1.2**2 * (signal - 0.25) + np.log(prevalence / (1 - prevalence))
        known = random.random(rows) < 0.8
        table[f"target.{label}"] = pa.array(targets.astype(np.float32), mask=~known)
        table[f"probability.{label}"] = pa.array((1 / (1 + np.exp(-logits))).astype(np.float32))
    spec = EvaluationSpec(slices=("language",), replicates=200)
    data = EvaluationData.from_table(pa.table(table), list(prevalences), dict.fromkeys(prevalences, 0.5), spec)
    with TemporaryDirectory() as folder:
        page = Path(folder) / EXAMPLE_REPORT
        render_evaluation_page(evaluate_data(data, {"run": "example", "split": "synthetic scores"}), data, page)
        return page.read_bytes()
