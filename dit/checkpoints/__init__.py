"""Checkpoints of the original implementations and of diffusers, as networks of ours."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from mezzotint.dit.checkpoints.dit import from_dit
from mezzotint.dit.checkpoints.latte import from_latte
from mezzotint.dit.checkpoints.microdit import from_microdit
from mezzotint.dit.checkpoints.sparsedit import from_sparsedit

ORIGINALS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], nn.Module]] = {
    "dit": from_dit, "sparsedit": from_sparsedit, "latte": from_latte, "microdit": from_microdit,
}


def from_original(kind: str, config: Mapping[str, Any], state_dict: Mapping[str, Any]) -> nn.Module:
    """A network with the weights of an original checkpoint, in evaluation mode and in their dtype.

    kind: a key of ORIGINALS. config: the authors' own settings (input_size, depth, ...); what is left out takes their
    defaults. state_dict: tensors under the authors' keys; they are used as they are, not copied.
    The network is called as module(x, t, y), with grid=(rows, columns) for sparsedit, and as
    module.forward_with_cfg(x, t, y, scale); for microdit as module(x, t, y, keep=..., guidance_scale=...).
    Raises ValueError for an unknown kind or setting, and for missing, extra or misshapen keys, which it names.
    """
    if kind not in ORIGINALS:
        raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(ORIGINALS)}.")
    return ORIGINALS[kind](config, state_dict)
