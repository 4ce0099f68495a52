"""Pictures as maps of a few numbers a patch: the principal components of the training pictures' patches.

Neighbouring pixels say nearly the same. Of the 3,072 values of a 32 x 32 patch, 128 components keep 99 % of the
variance, so the network works on these. The components differ by a factor of a hundred in size, and at any noise
time some of them are known and some are lost in the noise; so each is scaled by itself, by the deviations that it
has at that time (the preconditioning of EDM, arXiv 2206.00364, section 5, done per component).

Shape suffixes: B batch, c picture channels, H rows, W columns of pixels, N patches, P patch values, K components.
"""

import torch
from torch import Tensor, nn

from mezzotint.dit.config import DiTConfig
from mezzotint.dit.layers import patchify, unpatchify

SMALLEST_DEVIATION = 1e-3
"""A component that never varies would be divided by nothing."""


class PatchComponents(nn.Module):
    """An orthonormal basis of patches and the root mean square of each coefficient. Fitted once, not trained."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        values = config.in_channels * config.patch_size**2
        self.patch_size = config.patch_size
        # Orthonormal as it stands, and cheap: `fit` or the weights of a model take its place.
        self.basis = nn.Parameter(torch.eye(values, config.patch_bottleneck), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(config.patch_bottleneck), requires_grad=False)

    @torch.no_grad()
    def fit(self, pictures_BcHW: Tensor) -> None:
        """Take the first K principal components (about zero) of the patches of fp32 pictures in [-1, 1]."""
        moment_PP = torch.zeros(2 * [self.basis.shape[0]])
        for some in pictures_BcHW.split(64):
            patches = patchify(some, self.patch_size).flatten(0, 1)
            moment_PP.addmm_(patches.T, patches)
        count = len(pictures_BcHW) * pictures_BcHW[0, 0].numel() // self.patch_size**2
        variance, vectors_PP = torch.linalg.eigh(moment_PP / count)
        kept = range(-1, -1 - len(self.deviation), -1)
        self.basis.copy_(vectors_PP[:, list(kept)])
        self.deviation.copy_(variance[list(kept)].clamp(min=0).sqrt().clamp(min=SMALLEST_DEVIATION))

    def analyse(self, x_BcHW: Tensor) -> Tensor:
        """Pictures to maps of coefficients [B, K, rows, columns], fp32. Unit noise stays unit noise."""
        rows, columns = (side // self.patch_size for side in x_BcHW.shape[-2:])
        patches_BNP = patchify(x_BcHW.to(self.basis.dtype), self.patch_size)
        return (patches_BNP @ self.basis).float().transpose(1, 2).unflatten(2, (rows, columns))

    def synthesise(self, maps_BKHW: Tensor) -> Tensor:
        """Maps of coefficients back to pictures, in the dtype of the basis."""
        grid = (maps_BKHW.shape[-2], maps_BKHW.shape[-1])
        patches_BNP = maps_BKHW.flatten(2).transpose(1, 2).to(self.basis.dtype) @ self.basis.T
        return unpatchify(patches_BNP, grid, self.patch_size)

    def scales(self, t_B: Tensor, noise_scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """What the noisy coefficient is multiplied by before the network and beside it, and what the network's
        answer is multiplied by: three of [B, 1, K], fp32. Both ends of the network then have unit deviation."""
        t = t_B.float().view(-1, 1, 1)
        deviation = self.deviation.float()
        signal, noise = deviation * (1 - t), noise_scale * t
        total = torch.hypot(signal, noise)
        return 1 / total, deviation * signal / total.square(), deviation * noise / total
