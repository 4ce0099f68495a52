"""What a pass of a network costs, whichever kind it is. Pure arithmetic, no torch."""

from dataclasses import replace

from mezzotint.dit.config import DiTConfig
from mezzotint.dit.density import Grid
from mezzotint.dit.flops import forward_flops
from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.dit.latent_flops import latent_flops


def pass_flops(
    config: DiTConfig | ClassDiTConfig, grid: Grid, sparse_grid: Grid | None, *, modules: bool = True
) -> int:
    """FLOPs of one pass of the network on one picture; what encodes text and decodes latents is left out.

    modules: False leaves the sparse-dense modules out, which a network without segments does not have.
    """
    if isinstance(config, DiTConfig):
        return forward_flops(config, grid, sparse_grid=sparse_grid, modules=modules)
    return latent_flops(config, grid, sparse_grid, modules=modules)


def dense_flops(config: DiTConfig | ClassDiTConfig, grid: Grid) -> int:
    """FLOPs of one pass of a network of the same size without segments; of this one where it has none."""
    if isinstance(config, DiTConfig):
        return pass_flops(replace(config, segments=None), grid, None)
    return pass_flops(replace(config, segments=None, default_grid=None), grid, None)
