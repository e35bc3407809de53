"""Constraints of a sweep: comparisons of simple arithmetic over recipe keys and metrics.

Example:
    >>> constraint = parse_constraint("model.width * model.fusion.layers <= 1024", ["model.width", "model.fusion.layers"])
    >>> constraint.violation({"model.width": 256, "model.fusion.layers": 6})
    512.0
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from vigil_data.yaml_files.yaml_tree import nearest

_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FORM = "must compare two sums or products, such as model.width * 4 <= 1024"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A comparison.

    Attributes:
        text: the comparison as it was written.
        names: keys and metrics in it.
    """

    text: str
    names: tuple[str, ...]
    _excess: ast.expr

    def violation(self, values: Mapping[str, Any]) -> float:
        """Return by how much the constraint is violated, 0 or less if it holds; infinity if that is not a number.

        Args:
            values: name to value. A name without a number, such as a key that is not searched in a point, violates nothing.
        """
        if any(isinstance(values.get(name), bool) or not isinstance(values.get(name), int | float) for name in self.names):
            return 0.0
        try:
            excess = float(_evaluate(self._excess, [float(values[name]) for name in self.names]))
        except ArithmeticError:
            return math.inf
        return math.inf if math.isnan(excess) else excess


def parse_constraint(text: str, names: Collection[str]) -> Constraint:
    """Parse a comparison with ``<=`` or ``>=``.

    Args:
        text: the comparison.
        names: keys and metrics that it may name; they may contain ``/``, ``@`` and ``-``.

    Raises:
        ValueError: if it is none, with what is wrong.
    """
    found: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        if match[0] not in found:
            found.append(match[0])
        return f"_{found.index(match[0])}_"

    words = sorted(names, key=len, reverse=True)
    pattern = "|".join(map(re.escape, words)) or "(?!)"
    plain = re.sub(rf"(?<![\w./@])(?:{pattern})(?![\w.@])", numbered, text)
    unknown = re.search(r"(?<![\w.])[A-Za-z][\w./@]*", re.sub(r"\b\d+(\.\d*)?e[+-]?\d+", "1", plain, flags=re.IGNORECASE))
    if unknown is not None:
        raise ValueError(f"{unknown[0]} is neither a number in the recipe nor a metric{nearest(unknown[0], list(names))}")
    try:
        tree = ast.parse(plain.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(_FORM) from None
    if not isinstance(tree, ast.Compare) or len(tree.ops) != 1 or not isinstance(tree.ops[0], ast.LtE | ast.GtE) or not found:
        raise ValueError(_FORM)
    sides = [tree.left, tree.comparators[0]]
    low, high = sides if isinstance(tree.ops[0], ast.LtE) else sides[::-1]
    excess = ast.BinOp(low, ast.Sub(), high)
    _check(excess)
    return Constraint(text, tuple(found), excess)


def _check(node: ast.expr) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        _check(node.left)
        _check(node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        _check(node.operand)
    elif not (isinstance(node, ast.Name) or (isinstance(node, ast.Constant) and type(node.value) in (int, float))):
        raise ValueError(_FORM)


def _evaluate(node: ast.expr, values: list[float]) -> float:
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_evaluate(node.left, values), _evaluate(node.right, values))
    if isinstance(node, ast.UnaryOp):
        return -_evaluate(node.operand, values)
    if isinstance(node, ast.Name):
        return values[int(node.id.strip("_"))]
    return float(node.value)  # type: ignore[attr-defined]  # _check leaves numbers alone
