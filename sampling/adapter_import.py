"""Somebody's adapter file into the person's own folder, checked against its base; and adapters merged into a model."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from mezzotint.dit.adapters import AdapterSlot, check_fit
from mezzotint.dit.model import DiT
from mezzotint.sampling.adapter_card import AdapterCard
from mezzotint.sampling.adapter_files import (
    AdapterFile,
    adapter_names,
    adapters_folder,
    check_base,
    check_name,
    describe,
    find_adapter,
)
from mezzotint.sampling.adapter_layouts import flux_pairs, flux_skeleton
from mezzotint.sampling.adapters import (
    Pairs,
    load_adapter,
    loras_of,
    pairs_of,
    read_adapter_tensors,
    save_adapter,
)
from mezzotint.sampling.catalog import ModelCard, find_model
from mezzotint.sampling.hub import fingerprint
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.sampling.published_adapters import PUBLISHED
from mezzotint.sampling.safetensors_header import refuse, shown

FLUX = "flux"
"""The base of adapters for FLUX.1, whose weights need not be here."""


def import_adapter(path: Path, name: str, base: str) -> AdapterFile:
    """Write a file as an adapter of ours under a name in the person's own folder.

    base: FLUX, or the name or folder of a model that draws by text. A file that says on which weights it was trained
    must have been trained on those. Of one that does not say, the modules and their sides alone are compared.
    Raises AdapterFileError for a bad file, and ValueError for a name that is taken, a base that there is not and one
    that does not fit.
    """
    if check_name(name) in adapter_names():
        raise ValueError(f"--name is {name!r}; an adapter of that name is there already, so give another one.")
    model = None if base == FLUX else find_model(base)
    header, tensors = read_adapter_tensors(path)
    try:
        card = AdapterCard.from_header(header.metadata)
    except ValueError as error:
        refuse(path, f"has a header that cannot be used: {shown(str(error).rstrip('.'), 200)}")
    # What has a card is in our layout; any other file may bring its alpha in some other way.
    pairs = flux_pairs(tensors, header.metadata, path) if card is None else pairs_of(tensors, path)
    known = _foreign_card(pairs, name, "FLUX.1" if model is None else model.name) if card is None else card
    given = AdapterFile(name=name, path=path, card=known, num_modules=len(pairs), size_bytes=header.size_bytes)
    if model is not None:
        check_base(given, base, fingerprint(model))
    elif known.base_fingerprint is not None:
        raise ValueError(f"--base is {FLUX}; the file was trained on {known.base or 'a model'} with fingerprint "
                         f"{known.base_fingerprint}, so name that model.")
    _check(pairs, given, flux_skeleton() if model is None else skeleton(model))
    target = adapters_folder() / f"{name}.safetensors"
    save_adapter(target, pairs, known)
    return describe(target, name)


def skeleton(model: ModelCard) -> nn.Module:
    """The modules of a model that draws by text, without weights."""
    with torch.device("meta"):
        return DiT.from_config(asdict(model.text_config))


def _check(pairs: Pairs, given: AdapterFile, network: nn.Module) -> None:
    for module, pair in pairs.items():
        if not all(bool(half.isfinite().all()) for half in pair):
            refuse(given.path, f"has an alpha with which the values of {module} are no longer finite")
    check_fit(given.name, loras_of(pairs, given.card, given.path), network)


def _foreign_card(pairs: Pairs, name: str, base: str) -> AdapterCard:
    """Of a file that has none: its matrices count as they are."""
    rank = max(down.shape[0] for down, _ in pairs.values())
    card = AdapterCard(rank=rank, alpha=float(rank), base=base)
    if name not in PUBLISHED:
        return card
    known = PUBLISHED[name]
    return replace(card, layout=known.layout, caption=known.prompt)


def fuse_into_folder(model: str, adapters: Sequence[tuple[str, float]], output: Path) -> None:
    """Write a model's folder with adapters, by name and weight, merged into its weights; the model stays as it is.

    Raises ValueError for a model, an adapter or a folder that cannot be used, and where both do not fit.
    """
    card = find_model(model)
    if output.exists():
        raise ValueError(f"-o is {output}; it is there already, so give another name or move it away.")
    files = [find_adapter(name) for name, _ in adapters]
    pipeline = Pipeline.from_pretrained(model, dtype=_saved_dtype(card))
    network, print_ = pipeline.transformer, fingerprint(card)
    loaded = [load_adapter(file, network, model, print_) for file in files]
    AdapterSlot(network).fuse([(one, weight) for one, (_, weight) in zip(loaded, adapters, strict=True)])
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}-{os.getpid()}")
    try:
        pipeline.save_pretrained(unfinished)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _saved_dtype(card: ModelCard) -> torch.dtype:
    """As the weights lie on disk, so that what is merged is rounded once."""
    _ = card.text_config
    path = sorted((card.folder / "transformer").glob("*.safetensors"))[0]
    with safe_open(path, "pt") as file:
        dtype: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return dtype
