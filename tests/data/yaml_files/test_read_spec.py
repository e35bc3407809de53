"""Blocks whose kind has a default: a file that names no kind, one that names another, and keys of the wrong kind."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, Tag

from vigil_data.errors import UserError
from vigil_data.specs import Spec, default_kind
from vigil_data.yaml_files.read_spec import read_spec


class Round(Spec):
    kind: Literal["round"] = "round"
    radius: float = Field(1.0, description="radius")


class Square(Spec):
    kind: Literal["square"] = "square"
    sides: tuple[float, ...] = ()


class Drawing(Spec):
    shape: Annotated[Annotated[Round, Tag("round")] | Annotated[Square, Tag("square")], default_kind("round")]
    name: str = ""


def read(tmp_path: Path, text: str) -> Drawing:
    file = tmp_path / "drawing.yaml"
    file.write_text(text)
    return read_spec(Drawing, file, "drawing", "name: a")


def test_default_kind_is_that_of_a_block_without_one(tmp_path):
    assert read(tmp_path, "shape: {radius: 2}").shape == Round(radius=2.0)
    assert read(tmp_path, "name: a").shape == Round()  # all its keys have defaults


def test_default_kind_gives_way_to_the_kind_of_the_file(tmp_path):
    assert read(tmp_path, "shape: {kind: square, sides: [1, 2]}").shape == Square(sides=(1.0, 2.0))


def test_default_kind_errors_name_file_line_and_the_kind_that_has_the_key(tmp_path):
    with pytest.raises(
        UserError, match=r"drawing.yaml:2: shape.sides: is not a key of shape of kind round; it is one of kind square"
    ):
        read(tmp_path, "name: a\nshape: {sides: [1]}")
    with pytest.raises(UserError, match=r"drawing.yaml:1: shape.kind: must be round or square, not"):
        read(tmp_path, "shape: {kind: oval}")
    with pytest.raises(UserError, match=r"drawing.yaml:1: shape: must be a mapping"):
        read(tmp_path, "shape: 3")
