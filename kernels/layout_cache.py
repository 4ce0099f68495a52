"""One chosen layout for several layers and denoising steps: attention's pattern changes slowly along both."""

from collections.abc import Callable, Hashable

from mezzotint.kernels.arguments import check_whole
from mezzotint.kernels.layout import BlockLayout


class LayoutCache:
    """Keeps a layout for `layers` consecutive layers and `steps` consecutive steps, then has it chosen anew.

    Layer and step groups start at multiples of `layers` and `steps`: with layers=4, layers 0 to 3 share one. A step
    below the last one seen begins a new run, and nothing of the old run is reused. Not for several threads at once.

    Args:
        layers: layers that share a layout, at least 1.
        steps: denoising steps that share a layout, at least 1.

    Raises:
        ValueError: layers or steps below 1.
    """

    def __init__(self, *, layers: int = 1, steps: int = 1) -> None:
        check_whole("layers", layers, 1)
        check_whole("steps", steps, 1)
        self.layers, self.steps = layers, steps
        self.num_computed = 0
        self.num_reused = 0
        self._kept: dict[tuple[int, Hashable], tuple[int, BlockLayout]] = {}
        self._last_step = -1

    def get(self, layer: int, step: int, choose: Callable[[], BlockLayout], *, variant: Hashable = None) -> BlockLayout:
        """The layout for this layer and step: the kept one, or else what `choose` returns now.

        layer, step: counted from 0, the step in the order of sampling. variant: keeps layouts apart that must not be
        mixed, such as those of another token grid or guidance branch. Raises ValueError for a negative layer or step.
        """
        check_whole("layer", layer, 0)
        check_whole("step", step, 0)
        if step < self._last_step:
            self.clear()
        self._last_step = step
        key, step_group = (layer // self.layers, variant), step // self.steps
        kept = self._kept.get(key)
        if kept is not None and kept[0] == step_group:
            self.num_reused += 1
            return kept[1]
        layout = choose()
        self.num_computed += 1
        self._kept[key] = (step_group, layout)
        return layout

    def clear(self) -> None:
        """Forget the layouts; the counts stay. Needed between runs of one step each, which look alike."""
        self._kept.clear()
        self._last_step = -1

    def report(self) -> str:
        """How often a layout was chosen, and how often one was reused, as one sentence."""
        asked = self.num_computed + self.num_reused
        share = self.num_computed / asked if asked else 0.0
        return f"layout chosen {self.num_computed} times for {asked} calls ({share:.0%})"
