"""The original checkpoints of SparseDiT / FlexDiT (arXiv 2412.06028): pooling blocks, sparse-dense modules, top."""

from collections.abc import Iterator, Mapping
from typing import Any

from mezzotint.dit.checkpoints.keys import take
from mezzotint.dit.checkpoints.original import all_blocks, complete, outer_entries, shared_settings
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.segment_layout import Role, SegmentLayout, roles_of

_OWN_SETTINGS = {
    "num_poolingformer": 2, "num_dumbbell": 4, "num_normal_block": 2, "semantic_size": 8,
    "dumbbell_group": [1, 3, 1, 1],
}
_PLACES: dict[Role, str] = {
    "generation": "token_merge_blocks", "sparse": "semantic_blocks", "recovery": "token_recover_blocks",
    "dense": "normal_blocks",
}


def from_sparsedit(config: Mapping[str, Any], state: Mapping[str, Any]) -> ClassDiT:
    """The network of an original configuration and state dict; its default grid is semantic_size squared.

    Raises ValueError where the two do not fit, or the segments do not add up to the depth.
    """
    whole = complete("sparsedit", config, _OWN_SETTINGS)
    layout = SegmentLayout(
        pool=whole["num_poolingformer"], modules=whole["num_dumbbell"], module=tuple(whole["dumbbell_group"]),
        top=whole["num_normal_block"],
    )
    roles_of(str(layout), whole["depth"])
    settings = shared_settings(whole) | {
        "num_classes": whole["num_classes"], "null_class": whole["class_dropout_prob"] > 0, "segments": str(layout),
        "default_grid": (whole["semantic_size"],) * 2,
    }
    names = [(f"blocks.{i}", place, role) for i, (place, role) in enumerate(_places(layout))]
    entries = outer_entries(whole["patch_size"], has_labels=whole["num_classes"] > 0) + all_blocks(names)
    return take(lambda: ClassDiT(**settings), entries, state)


def _places(layout: SegmentLayout) -> Iterator[tuple[str, Role]]:
    """Where the original keeps each block, in execution order."""
    yield from ((f"poolingformer_blocks.{i}", "pool") for i in range(layout.pool))
    for module in range(layout.modules):
        for (role, place), count in zip(_PLACES.items(), layout.module, strict=True):
            yield from ((f"dumbbell_blocks.{module}.{place}.{i}", role) for i in range(count))
    yield from ((f"normal_blocks.{i}", "dense") for i in range(layout.top))
