"""Which class a request asks for: its number, or one of the names that a model gives its classes. No torch here."""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mezzotint.sampling.request import RequestError

MOST_CHARACTERS = 60
"""Of a label that an error repeats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Classes:
    """The classes of a model.

    names: by number, as far as the model folder has them. A class may have several, "tench, Tinca tinca", as in the
    id2label of diffusers' DiTPipeline.
    Raises ValueError where there is no class, or a name of one that there is not.
    """

    count: int
    names: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("num_classes is 0; an unconditional network has nothing that a request could ask it for.")
        beyond = [number for number in self.names if not 0 <= number < self.count]
        if beyond:
            raise ValueError(f"id2label names class {beyond[0]}; the classes are from 0 to {self.count - 1}.")

    @classmethod
    def of(cls, count: int, id2label: Mapping[Any, Any] | None) -> "Classes":
        """From a model_index.json, whose keys are numbers in words. Raises ValueError where they are not."""
        named = {} if id2label is None else id2label
        if not isinstance(named, Mapping):
            raise ValueError("id2label must be a mapping of class numbers to names.")
        return cls(count=count, names={int(number): str(name) for number, name in named.items()})

    def number(self, label: int | str, model: str) -> int:
        """The number of a class by its number or one of its names, in small or capital letters.

        model: what an error calls the model. Raises RequestError (field "class_label") where there is no such class,
        or more than one of that name.
        """
        if isinstance(label, int):
            if 0 <= label < self.count:
                return label
            raise _refusal(label, f"{model} has {self.count:,} classes, so it must be from 0 to {self.count - 1}")
        if not self.names:
            raise _refusal(label, f"{model} does not name its classes, so give a number from 0 to {self.count - 1}")
        found = [number for number, name in self._spellings() if name == label.strip().casefold()]
        if not found:
            raise _refusal(label, f"{model} has no class of that name{self._nearest(label)}")
        if len(set(found)) > 1:
            numbers = " and ".join(map(str, sorted(set(found))))
            raise _refusal(label, f"{model} has several classes of that name, so give a number: {numbers}")
        return found[0]

    def labels(self) -> list[int | str]:
        """Each class in order by its first name, or by its number where it has no name that is its alone."""
        owners: dict[str, set[int]] = {}
        for number, name in self._spellings():
            owners.setdefault(name, set()).add(number)
        first = {number: names.split(",")[0].strip() for number, names in self.names.items()}
        return [
            first[number] if first.get(number) and len(owners[first[number].casefold()]) == 1 else number
            for number in range(self.count)
        ]

    def _spellings(self) -> Iterator[tuple[int, str]]:
        for number, names in self.names.items():
            yield number, names.strip().casefold()
            yield from ((number, name.strip().casefold()) for name in names.split(","))

    def _nearest(self, label: str) -> str:
        near = difflib.get_close_matches(label.strip().casefold(), [name for _, name in self._spellings()], n=1)
        return f"; the nearest is {near[0]}" if near else f", so give a number from 0 to {self.count - 1}"


def _refusal(label: int | str, reason: str) -> RequestError:
    shown = json.dumps(label, ensure_ascii=False)
    shown = shown if len(shown) <= MOST_CHARACTERS else shown[: MOST_CHARACTERS - 3] + "..."
    return RequestError("class_label", f"class_label is {shown}; {reason}.")
