"""Which adapters there are, and what their headers say, without reading a tensor. No torch here."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from mezzotint.sampling.adapter_card import AdapterCard
from mezzotint.sampling.safetensors_header import AdapterFileError, read_header, refuse, shown

SHIPPED_ADAPTERS = Path(__file__).resolve().parent.parent / "mezzotint" / "adapters"
if not SHIPPED_ADAPTERS.is_dir():  # an installed wheel puts this file at mezzotint/sampling/
    SHIPPED_ADAPTERS = Path(__file__).resolve().parent.parent / "adapters"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFile:
    """An adapter of ours on disk, with its card."""

    name: str
    path: Path
    card: AdapterCard
    num_modules: int
    size_bytes: int


def adapters_folder() -> Path:
    """Where a person's own adapters lie: MEZZOTINT_ADAPTERS_DIR, or adapters/ in the XDG data folder."""
    own = os.environ.get("MEZZOTINT_ADAPTERS_DIR")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(own) if own else Path(data) / "mezzotint" / "adapters"


def adapter_names() -> list[str]:
    """Names of the adapters that come with the package, and of the person's own."""
    found = {path.stem for folder in (SHIPPED_ADAPTERS, adapters_folder()) for path in folder.glob("*.safetensors")}
    return sorted(name for name in found if _NAME.fullmatch(name))


def find_adapter(name: str) -> AdapterFile:
    """Describe an adapter by its name. Raises ValueError when there is none, AdapterFileError when its file is bad."""
    for folder in (SHIPPED_ADAPTERS, adapters_folder()):
        path = folder / f"{check_name(name)}.safetensors"
        if path.is_file():
            return describe(path, name)
    listed = ", ".join(adapter_names()) or "none"
    raise ValueError(f"adapter is {name!r}; the adapters here are {listed}, and `mezzotint adapters import` brings "
                     "more.")


def describe(path: Path, name: str) -> AdapterFile:
    """An adapter by its file's header. Raises AdapterFileError where it is not of ours."""
    header = read_header(path)
    try:
        card = AdapterCard.from_header(header.metadata)
    except ValueError as error:
        refuse(path, f"has a header that cannot be used: {shown(str(error).rstrip('.'), 200)}")
    if card is None:
        raise AdapterFileError(f"{shown(str(path), 200)} is no adapter of ours, since its header has no card; "
                               "`mezzotint adapters import` makes one of it.")
    return AdapterFile(name=name, path=path, card=card, num_modules=len(header.tensors) // 2,
                       size_bytes=header.size_bytes)


def check_name(name: str) -> str:
    """The name, once it is one that a file may have. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"adapter is {shown(name)!r}; a name has lower-case letters, digits, - and _, at most 64.")
    return name


def check_base(adapter: AdapterFile, model: str, fingerprint: str) -> None:
    """Raise ValueError where an adapter was trained on other weights than a model's."""
    trained_on = adapter.card.base_fingerprint
    if trained_on is not None and trained_on != fingerprint:
        raise ValueError(f"adapter is {adapter.name!r}; it was trained on {adapter.card.base or 'a model'} with "
                         f"fingerprint {trained_on}, and {model} has fingerprint {fingerprint}.")
