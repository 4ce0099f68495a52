"""How often a layout is chosen anew, and for whom."""

import itertools

import pytest

from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_cache import LayoutCache


def run(cache: LayoutCache, layers: int, steps: int) -> list[tuple[int, int]]:
    """One run of a model; returns the (layer, step) at which each layer's layout was chosen, layer by layer."""
    made: dict[int, tuple[int, int]] = {}

    def choose(at: tuple[int, int]) -> BlockLayout:
        layout = BlockLayout.full(block_q=16, block_k=16, num_q=16, num_k=16)
        made[id(layout)] = at
        kept.append(layout)
        return layout

    kept: list[BlockLayout] = []  # alive, so that no id comes twice
    used = []
    for step, layer in itertools.product(range(steps), range(layers)):
        layout = cache.get(layer, step, lambda at=(layer, step): choose(at))
        used.append(made[id(layout)])
    return used


def test_a_layout_serves_its_group_of_layers_and_steps() -> None:
    cache = LayoutCache(layers=2, steps=3)
    used = run(cache, layers=5, steps=7)
    wanted = [(layer // 2 * 2, step // 3 * 3) for step, layer in itertools.product(range(7), range(5))]
    assert used == wanted
    assert cache.num_computed == 3 * 3
    assert cache.num_reused == 5 * 7 - 9
    assert cache.report() == "layout chosen 9 times for 35 calls (26%)"


def test_a_new_run_reuses_nothing_of_the_last_one() -> None:
    cache = LayoutCache(layers=4, steps=100)
    run(cache, layers=4, steps=3)
    run(cache, layers=4, steps=3)
    assert cache.num_computed == 2
    cache.clear()
    run(cache, layers=4, steps=1)
    assert cache.num_computed == 3


def test_variants_are_kept_apart() -> None:
    cache = LayoutCache(layers=2, steps=2)
    small, large = (BlockLayout.full(block_q=16, block_k=16, num_q=n, num_k=n) for n in (16, 32))
    assert cache.get(0, 0, lambda: small, variant="small") is small
    assert cache.get(0, 0, lambda: large, variant="large") is large
    assert cache.get(1, 1, lambda: large, variant="small") is small
    assert (cache.num_computed, cache.num_reused) == (2, 1)


def test_the_cache_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="layers is 0"):
        LayoutCache(layers=0)
    with pytest.raises(ValueError, match="step is -1"):
        LayoutCache().get(0, -1, lambda: BlockLayout.full(block_q=16, block_k=16, num_q=16, num_k=16))
