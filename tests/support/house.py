"""Facts about the source tree: modules per folder, module cycles, lengths, private attributes of libraries, words.

``python tests/support/house.py [CHECKOUT]`` prints a table of them.
"""

import ast
import io
import re
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

AVOIDED = re.compile(
    r"\b(anew|beside|likewise|of which|to be had|dear|dearer|dearest|dearly|mend|mends|mended|mending)\b", re.IGNORECASE
)
"""Words that DESIGN.md tells writers to avoid."""


def packages(checkout: Path) -> list[Path]:
    """The folder of each package: one in each source root."""
    return sorted(path.parent for path in checkout.glob("*/vigil*/__init__.py"))


def modules(checkout: Path) -> dict[str, Path]:
    """Dotted name to file, of every module of every package."""
    found = {}
    for package in packages(checkout):
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def modules_per_folder(checkout: Path) -> dict[str, int]:
    """Folder to its number of modules, ``__init__`` not counted."""
    counts: dict[str, int] = defaultdict(int)
    for file in modules(checkout).values():
        if file.name != "__init__.py":
            counts[str(file.parent.relative_to(checkout))] += 1
    return dict(counts)


def imports(name: str, file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the house that a module imports, at its top or lazily; those for type checkers alone are left out."""
    found = set()
    for node in _running(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in known else node.module for a in node.names}
    return (found & known.keys()) - {name}


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node below ``tree`` but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _running(node)


def cycles(checkout: Path) -> list[tuple[str, str]]:
    """Pairs of modules that import each other."""
    known = modules(checkout)
    edges = {name: imports(name, file, known) for name, file in known.items()}
    return [(a, b) for a, b in combinations(sorted(known), 2) if b in edges[a] and a in edges[b]]


def lengths(checkout: Path) -> tuple[list[int], list[int]]:
    """Lines of each file and of each function."""
    files, functions = [], []
    for file in modules(checkout).values():
        text = file.read_text(encoding="utf-8")
        if file.name != "__init__.py" or len(text.splitlines()) > 3:
            files.append(len(text.splitlines()))
        nodes = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
        functions += [(node.end_lineno or node.lineno) - node.lineno + 1 for node in nodes]
    return files, functions


def library_internals(checkout: Path) -> list[str]:
    """Places that use a private attribute which no class or module of the house defines: it is a library's."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in modules(checkout).values()}
    own = {name for tree in trees.values() for name in _defined(tree)}
    return [
        f"{file.relative_to(checkout)}:{node.lineno}: {node.attr}"
        for file, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr) and node.attr not in own
    ]


DOCUMENTED = {"_asdict", "_replace", "_fields", "_make", "_exit"}
"""Private only in name: documented members of named tuples, and ``os._exit``."""


def _defined(tree: ast.AST) -> set[str]:
    names = set(DOCUMENTED)
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case _:
                pass
    return names


def avoided_words(file: Path) -> list[str]:
    """Places in a file's prose that have one of the words to avoid: docstrings, comments and messages, or all of a text file."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return [f"{file}:{n}: {m[0]}" for n, line in enumerate(text.splitlines(), 1) for m in AVOIDED.finditer(line)]
    found = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            for n, line in enumerate(token.string.splitlines(), token.start[0]):
                found += [f"{file}:{n}: {m[0]}" for m in AVOIDED.finditer(line)]
    return found


def main(checkout: Path) -> None:
    """Print the table."""
    folders, pairs = modules_per_folder(checkout), cycles(checkout)
    files, functions = lengths(checkout)
    print(f"modules                 {sum(folders.values())} in {len(folders)} folders")
    print(f"modules a folder        median {statistics.median(folders.values()):g}, most {max(folders.values())}")
    print(f"pairs of modules that import each other  {len(pairs)}")
    for name, values in (("file", files), ("function", functions)):
        p90 = statistics.quantiles(values, n=10)[-1]
        print(f"lines a {name:<15} median {statistics.median(values):g}, p90 {p90:g}, total {sum(values):,}")
    for folder, count in sorted(folders.items(), key=lambda entry: -entry[1])[:8]:
        print(f"  {count:3} {folder}")
    for pair in pairs:
        print("  cycle", *pair)
    print(f"private attributes of libraries  {len(library_internals(checkout))}")
    for place in library_internals(checkout):
        print("  ", place)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2])
