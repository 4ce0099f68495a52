"""What the header of an adapter of ours says beside its tensors, as JSON under one key. No torch here."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mezzotint.sampling.panels import PanelLayout

HEADER_KEY = "mezzotint"
MAX_RANK = 512
MAX_ALPHA = 65_536.0
MAX_TEXT_CHARACTERS = 4000
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterCard:
    """rank: the largest of any module. alpha: every product of two matrices is scaled by alpha / rank.

    base, base_fingerprint: the model that it was trained on, by name and by `hub.fingerprint`; a file of somebody
    else's has no fingerprint, and its modules alone say whether it fits.
    layout, marker, caption: of a task's sets: the panels, the marker that captions open with, and how they are written.
    """

    rank: int
    alpha: float
    base: str = ""
    base_fingerprint: str | None = None
    layout: PanelLayout | None = None
    marker: str = ""
    caption: str = ""

    def __post_init__(self) -> None:
        if type(self.rank) is not int or not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"rank is {self.rank!r}; it must be a whole number from 1 to {MAX_RANK}.")
        number = type(self.alpha) in (int, float)
        if not number or not math.isfinite(self.alpha) or not 0 < self.alpha <= MAX_ALPHA:
            raise ValueError(f"alpha is {self.alpha!r}; it must be a number over 0, at most {MAX_ALPHA:g}.")
        for name in ("base", "marker", "caption"):
            text = getattr(self, name)
            printable = isinstance(text, str) and text.replace("\n", " ").isprintable()
            if not printable or len(text) > MAX_TEXT_CHARACTERS:
                raise ValueError(f"{name} must be plain text of at most {MAX_TEXT_CHARACTERS:,} characters.")
        given = self.base_fingerprint
        if given is not None and not (isinstance(given, str) and _FINGERPRINT.fullmatch(given)):
            raise ValueError("base_fingerprint must be 16 hexadecimal digits, or not be there.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def to_header(self) -> dict[str, str]:
        """As safetensors takes it for metadata."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.layout is not None:
            layout = self.layout
            values["layout"] = {"rows": layout.rows, "columns": layout.columns, "markers": layout.markers}
        return {HEADER_KEY: json.dumps(values, ensure_ascii=False), "format": "pt"}

    @classmethod
    def from_header(cls, metadata: Mapping[str, str]) -> "AdapterCard | None":
        """None for a file without a card. Raises ValueError for a card that makes no sense."""
        if HEADER_KEY not in metadata:
            return None
        try:
            values = json.loads(metadata[HEADER_KEY])
        except (ValueError, RecursionError):
            raise ValueError("the card is not JSON.") from None
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not {"rank", "alpha"} <= values.keys() <= names:
            raise ValueError(f"the card must have rank and alpha, and of others only {', '.join(sorted(names))}.")
        return cls(**{**values, "layout": _layout(values.get("layout"))})


def _layout(given: Any) -> PanelLayout | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.keys() != {"rows", "columns", "markers"}:
        raise ValueError("layout must have rows, columns and markers.")
    rows, columns, markers = given["rows"], given["columns"], given["markers"]
    texts = isinstance(markers, list) and all(isinstance(marker, str) for marker in markers)
    if type(rows) is not int or type(columns) is not int or not texts:
        raise ValueError("layout must have whole rows and columns, and markers that are texts.")
    return PanelLayout(rows=rows, columns=columns, markers=tuple(markers))
