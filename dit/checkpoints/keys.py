"""How the tensors of somebody else's checkpoint become ours, and back: a list of entries a network.

An entry knows one tensor of ours, the keys that it comes from, and how both are made of each other. Whatever does not
fit is found before a tensor is touched, and named in one error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

MOST_NAMED = 8
"""Keys of one kind that an error names before it only counts."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """join makes our tensor of theirs, split theirs of ours; both keep every bit."""

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]


def same(ours: str, theirs: str) -> list[Entry]:
    """One tensor under two names."""
    return [Entry(ours=ours, theirs=(theirs,), join=lambda t: t[0], split=lambda t: [t])]


def linear(ours: str, theirs: str) -> list[Entry]:
    """Weight and bias of a Linear."""
    return same(f"{ours}.weight", f"{theirs}.weight") + same(f"{ours}.bias", f"{theirs}.bias")


def stacked(ours: str, theirs: Sequence[str]) -> list[Entry]:
    """One Linear of ours does what several of theirs do, one below the other."""
    return [
        Entry(
            ours=f"{ours}.{part}", theirs=tuple(f"{name}.{part}" for name in theirs),
            join=lambda t: torch.cat(list(t)),
            split=lambda t: [rows.clone() for rows in t.chunk(len(theirs))],
        )
        for part in ("weight", "bias")
    ]


def copies(entries: Iterable[Entry], prefixes: Sequence[str]) -> list[Entry]:
    """Theirs hold the same tensors under several prefixes, and all copies are equal; ours holds one."""
    return [
        Entry(
            ours=entry.ours, theirs=tuple(prefix + name for prefix in prefixes for name in entry.theirs),
            join=entry.join, split=lambda t: [t.clone() for _ in prefixes],
        )
        for entry in entries
    ]


def patch_linear(ours: str, theirs: str, patch_size: int) -> list[Entry]:
    """Their convolution over patches is our Linear over flat patches, whose channels come last."""

    def join(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].permute(0, 2, 3, 1).flatten(1)

    def split(tensor: Tensor) -> list[Tensor]:
        return [tensor.unflatten(1, (patch_size, patch_size, -1)).permute(0, 3, 1, 2).contiguous()]

    weight = Entry(ours=f"{ours}.weight", theirs=(f"{theirs}.weight",), join=join, split=split)
    return [weight, *same(f"{ours}.bias", f"{theirs}.bias")]


def table(ours: str, theirs: str) -> list[Entry]:
    """A table that theirs keeps with a batch dimension of 1."""
    return [Entry(ours=ours, theirs=(theirs,), join=lambda t: t[0][0], split=lambda t: [t[None]])]


def take(make: Callable[[], Network], entries: Sequence[Entry], state: Mapping[str, Any]) -> Network:
    """A network with the tensors of `state`, in their dtype.

    make: builds it; it is called on the meta device, so that nothing is filled twice. What no entry speaks of stays
    there, for the caller to fill.

    Raises ValueError that names every missing, extra and misshapen key.
    """
    with torch.device("meta"):
        network = make()
    check_keys(entries, state, network.state_dict())
    ours = {entry.ours: entry.join([state[name] for name in entry.theirs]).contiguous() for entry in entries}
    network.load_state_dict(ours, strict=False, assign=True)
    return network.eval()


def give(entries: Sequence[Entry], network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network under their keys."""
    ours = network.state_dict()
    return {
        name: part
        for entry in entries for name, part in zip(entry.theirs, entry.split(ours[entry.ours]), strict=True)
    }


def check_keys(entries: Sequence[Entry], state: Mapping[str, Any], ours: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `state` holds exactly what the entries take, in the shapes that `ours` need."""
    expected = {
        name: list(part.shape)
        for entry in entries for name, part in zip(entry.theirs, entry.split(ours[entry.ours].to("meta")), strict=True)
    }
    shapes = {name: list(tensor.shape) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    wrong = [f"{n} is {shapes[n]} and not {expected[n]}" for n in expected if n in shapes and shapes[n] != expected[n]]
    problems = [
        _named("missing", [name for name in expected if name not in shapes]),
        _named("not expected", [name for name in state if name not in expected]),
        _named("misshapen", wrong),
    ]
    if any(problems):
        raise ValueError(f"the checkpoint does not fit its configuration: {'; '.join(filter(None, problems))}.")


def _named(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{what}: {', '.join(names[:MOST_NAMED])}{rest}"


def refuse_unless(kind: str, shape: object, **needed: object) -> None:
    """Raise ValueError that names every setting of a network's shape which a checkpoint of this kind cannot have."""
    wrong = [
        f"{name} is {getattr(shape, name)!r} and must be {value!r}"
        for name, value in needed.items() if getattr(shape, name) != value
    ]
    if wrong:
        raise ValueError(f"the network cannot be written as a {kind}: {'; '.join(wrong)}.")
