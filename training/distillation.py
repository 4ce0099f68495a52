"""A second network that says what is to be learnt: the dense one that a network with segments was cut from.

Its answer has no noise of the data in it, so a cut network finds back in a fraction of the steps. Where the tokens are
dense again after a module, they can be held against the teacher's at the same depth, too (hints, arXiv 1412.6550): what
a module has to give is then learnt without a path through all of the blocks behind it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from mezzotint.dit.config import DiTConfig
from mezzotint.dit.model import DiT
from mezzotint.training.config import ConfigError, DistillConfig

_MAY_DIFFER = ("segments", "num_layers", "hidden_size", "num_heads", "mlp_ratio", "norm", "mlp", "qk_norm")
"""Settings of the inside of a network; what goes in and what comes out has to be alike."""


class Teacher:
    """A network that does not learn, on the run's device in its dtype."""

    def __init__(self, config: DistillConfig, network: DiT, device: torch.device, dtype: torch.dtype) -> None:
        """network: the one that will learn. Raises ConfigError where the two do not speak of the same things."""
        from mezzotint.sampling.catalog import find_model

        card = find_model(config.teacher)
        _check_alike(config.teacher, card.text_config, network.shape)
        _check_depth(config, card.text_config, network.shape)
        self.weight, self.hint_weight = config.weight, config.hint_weight
        self._depths = [depth for depth, role in enumerate(network.shape.roles) if role == "recovery"]
        self.network = DiT.from_pretrained(card.folder / "transformer", dtype=torch.float32)
        _check_components(config.teacher, self.network, network)
        torch.nn.Module.to(self.network, device=device, dtype=dtype).eval().requires_grad_(False)
        self._seen: list[Tensor] = []

    @torch.no_grad()
    def target(self, x: Tensor, noise: Tensor, inputs: tuple[Tensor, ...], *, in_components: bool) -> Tensor:
        """The clean picture that the loss is taken against: `weight` of the teacher's, the rest of the data's x.

        inputs: what the network is called with (noisy pictures, t, text, pooled, mask).
        """
        with self.watching(self.network) as self._seen:
            answer = self.network(*inputs, in_components=in_components).float()
        clean = noise - answer if self.network.shape.prediction == "v" else answer
        return torch.lerp(x, clean, self.weight)

    @contextmanager
    def watching(self, network: DiT) -> Iterator[list[Tensor]]:
        """Collect the tokens behind each recovery block of a pass, or behind the teacher's block of that depth."""
        seen: list[Tensor] = []
        watched = [network.blocks[depth] for depth in self._depths] if self.hint_weight else []
        handles = [block.register_forward_hook(lambda *call: seen.append(call[-1])) for block in watched]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def hint_loss(self, seen: Sequence[Tensor]) -> Tensor:
        """hint_weight times the mean over the recovery blocks of the squared distance of the network's tokens from the
        teacher's of the last `target`, over the mean square of those: 0 is alike, 1 is as far as from nothing."""
        pairs = zip(seen, self._seen, strict=True)
        distances = [_relative_square(ours, theirs) for ours, theirs in pairs]
        return self.hint_weight * torch.stack(distances).mean() if distances else torch.zeros(())


def _relative_square(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.float() - theirs.float()).square().mean() / theirs.float().square().mean()


def _check_alike(name: str, theirs: DiTConfig, ours: DiTConfig) -> None:
    inside = {setting: getattr(ours, setting) for setting in _MAY_DIFFER}
    if replace(theirs, **inside) != ours:
        raise ConfigError(f"distill.teacher is {name}; it must take and give what the network does, so all model "
                          f"settings but {', '.join(_MAY_DIFFER)} must be those of the recipe.")


def _check_depth(config: DistillConfig, theirs: DiTConfig, ours: DiTConfig) -> None:
    if config.hint_weight and (theirs.num_layers, theirs.hidden_size) != (ours.num_layers, ours.hidden_size):
        raise ConfigError(f"distill.hint_weight is {config.hint_weight}; it must be 0, since {config.teacher} has "
                          f"{theirs.num_layers} blocks of width {theirs.hidden_size} and the network "
                          f"{ours.num_layers} of {ours.hidden_size}.")


def _check_components(name: str, theirs: DiT, ours: DiT) -> None:
    if theirs.components is None or ours.components is None:
        return
    pairs = zip(theirs.components.parameters(), ours.components.parameters(), strict=True)
    if not all(torch.equal(one.float(), other.float().to(one.device)) for one, other in pairs):
        raise ConfigError(f"distill.teacher is {name}; its principal components are others than the network's, so "
                          f"start from it (--init-from {name}).")
