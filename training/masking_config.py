"""How many image tokens of a training batch are left out of the backbone, and how they are drawn."""

from dataclasses import dataclass

KINDS = ("random", "groups")


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskingConfig:
    """ratio: share of a picture's tokens that do not go through the backbone, 0 to under 1; 0 masks nothing.
    kind: how they are drawn, every picture its own: "random", one by one; "groups", whole squares of neighbours at
        random places (as GMML masks, arXiv 2205.14986), of which the last may be cut so that the count is exact.
    group_size: side of a square in tokens.
    bypass_from, bypass_to: they pass the blocks from the first number to before the second by and come back, instead
        of being dropped; both 0 drops them.
    Raises ValueError naming the setting, its value and what it must be.
    """

    ratio: float = 0.0
    kind: str = "random"
    group_size: int = 4
    bypass_from: int = 0
    bypass_to: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio is {self.ratio}; it must be at least 0 and under 1.")
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        if self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}; it must be at least 1 token.")
        span = (self.bypass_from, self.bypass_to)
        if span != (0, 0) and not 0 <= self.bypass_from < self.bypass_to:
            raise ValueError(
                f"bypass_from is {self.bypass_from} and bypass_to {self.bypass_to}; they must be the first block and "
                "the one behind the last, or both 0."
            )

    @property
    def bypass(self) -> tuple[int, int] | None:
        """Blocks that the other tokens pass by; None drops these."""
        return (self.bypass_from, self.bypass_to) if self.bypass_to else None
