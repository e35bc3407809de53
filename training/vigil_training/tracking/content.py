"""The content rule: the only way by which anything about an item reaches a tracking service.

Example:
    >>> ContentRule("redacted").text("Anna writes to anna@example.com")
    '[name] writes to [e-mail]'
    >>> ContentRule("ids").text("Anna writes to anna@example.com") is None
    True
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from vigil_data.presence import PRESENCE

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

T = TypeVar("T")

ContentLevel = Literal["none", "ids", "redacted", "full"]

WITHHELD = "(withheld)"
"""What stands in place of a value that the rule keeps at home."""

MIN_GROUP_ITEMS = 5
"""The value of a column that fewer items share is kept at home: it may describe one of them."""

_OWN_COLUMNS = ("author", "text", "created_at")
"""Columns whose values describe an item or its author, however many items share them."""

_NUMBER_PREFIXES = ("target.", "probability.")


@dataclass(frozen=True, slots=True)
class ContentRule:
    """What may be sent of items, by ``tracking.content`` of the recipe.

    ======== ======== ============== ================= ======= =========================
    level    ids      texts          images            audio   values of rare slices
    ======== ======== ============== ================= ======= =========================
    none     no       no             no                no      no
    ids      yes      no             no                no      no
    redacted yes      masked         blurred           no      no
    full     yes      yes            yes               yes     yes
    ======== ======== ============== ================= ======= =========================

    Attributes:
        level: the level.
    """

    level: ContentLevel

    @property
    def sends_diff(self) -> bool:
        """Whether a diff of the code may be sent: tests and recipes in it may quote items."""
        return self.level == "full"

    def item_id(self, id_: str) -> str | None:
        """Return the id of an item, if it may be sent."""
        return None if self.level == "none" else id_

    def text(self, text: str, names: Sequence[str] = ()) -> str | None:
        """Return what may be sent of a text.

        Args:
            text: the text.
            names: names that are known, such as the author's.
        """
        if self.level == "redacted":
            from vigil_training.tracking.evaluations.redaction import mask_text

            return mask_text(text, names)
        return text if self.level == "full" else None

    def image(self, data: bytes) -> "Image | None":
        """Return what may be sent of an encoded image; ``None`` also if it cannot be decoded."""
        import io

        from PIL import Image

        from vigil_training.tracking.evaluations.redaction import blur_image

        try:
            if self.level == "redacted":
                return blur_image(data)
            if self.level == "full":
                with Image.open(io.BytesIO(data)) as opened:
                    return opened.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError):
            return None
        return None

    def audio(self, data: bytes) -> bytes | None:
        """Return what may be sent of an encoded sound."""
        return data if self.level == "full" else None

    def message(self, text: str, otherwise: str) -> str:
        """Return what may be sent of a message, which may quote an item.

        Args:
            text: the message, such as that of an error.
            otherwise: what is sent in its place where texts are kept at home.
        """
        return self.text(text) or otherwise

    def withheld_values(self, table: "pa.Table", labels: Collection[str]) -> frozenset[str]:
        """Return the values of a predictions table's columns that may not be sent.

        Args:
            table: the predictions table.
            labels: names of labels, which are always sent.
        """
        if self.level == "full":
            return frozenset()
        found: set[str] = set()
        for name in table.column_names:
            if name in (PRESENCE, "split") or name.startswith(_NUMBER_PREFIXES) or (name == "id" and self.level != "none"):
                continue
            values = Counter(_strings(table.column(name).to_pylist()))
            own = name in ("id", *_OWN_COLUMNS)
            found |= {value for value, items in values.items() if own or items < MIN_GROUP_ITEMS}
        return frozenset(found - set(labels))

    def evaluation_files(self, folder: Path) -> dict[str, bytes]:
        """Return the files of an evaluation that may be sent: its report only as a whole, as it quotes items.

        Args:
            folder: folder of the evaluation: metrics.json, report.html, predictions.parquet.
        """
        metrics = (folder / "metrics.json").read_bytes()
        if self.level == "full":
            return {"metrics.json": metrics, "report.html": (folder / "report.html").read_bytes()}

        import pyarrow.parquet as pq

        results = json.loads(metrics)
        withheld = self.withheld_values(pq.read_table(folder / "predictions.parquet"), results["overall"]["labels"])
        return {"metrics.json": (json.dumps(withhold(results, withheld), indent=2, allow_nan=False) + "\n").encode()}


def withhold(value: T, withheld: Collection[str]) -> T:
    """Return plain data or dataclasses with :data:`WITHHELD` in place of some texts, and of crosses with one of them."""
    return cast("T", _withhold(value, withheld)) if withheld else value


def _withhold(value: Any, withheld: Collection[str]) -> Any:
    from vigil_evaluation.slices.grouping import CROSS

    if isinstance(value, str):
        parts = value.split(CROSS)
        return CROSS.join(WITHHELD if part in withheld else part for part in parts)
    if isinstance(value, Mapping):
        return {key: entry if key == "facts" else _withhold(entry, withheld) for key, entry in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        changed = {
            field.name: _withhold(getattr(value, field.name), withheld) for field in fields(value) if field.name != "facts"
        }
        return replace(value, **changed)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_withhold(entry, withheld) for entry in value))
    if isinstance(value, list | tuple):
        return type(value)(_withhold(entry, withheld) for entry in value)
    return value


def _strings(values: Sequence[Any]) -> list[str]:
    flat = [entry for value in values for entry in (value if isinstance(value, list) else [value])]
    return [str(value) for value in flat if value is not None and not isinstance(value, float | bool)]
