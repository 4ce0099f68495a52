"""Drawing around what is given: some values of a picture are fixed, and the sampler draws the others to them.

After every step the fixed values are put back with the noise of the next step, and clean behind the last one (SDEdit's
masked form, arXiv 2108.01073, section 3; image-conditional generation of arXiv 2410.23775). The noise is the one that
the drawing began with, so the fixed values go down a straight path.

Shape suffixes: B pictures, c channels, H rows, W columns.
"""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from mezzotint.sampling.request import RequestError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fixed:
    """What is given of a picture, or of its latents.

    clean: the given values, fp32 [c, H, W] or [B, c, H, W]; what they are under `drawn` says nothing.
    drawn: 1 where the sampler draws and 0 where values are fixed, [1, H, W] or [B, 1, H, W].
    """

    clean: Tensor
    drawn: Tensor

    def __post_init__(self) -> None:
        if self.clean.shape[-2:] != self.drawn.shape[-2:] or self.drawn.shape[-3] != 1:
            raise ValueError(f"drawn is {list(self.drawn.shape)}; for clean values of {list(self.clean.shape)} it must "
                             "end in 1 channel and the same rows and columns.")
        if not bool(((self.drawn == 0) | (self.drawn == 1)).all()):
            raise ValueError("drawn holds other values than 0 and 1; a panel is either fixed or drawn.")

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise RequestError unless pictures of size (rows, columns) can take the fixed values."""
        given = tuple(self.clean.shape[-2:])
        if given != size:
            raise RequestError("fixed", f"fixed is {given[0]} rows by {given[1]} columns; it must be as large as the "
                                        f"picture, {size[0]} by {size[1]}.")

    def hold(self, x_BcHW: Tensor, noise_BcHW: Tensor, *, signal: float, noise: float) -> Tensor:
        """x with the fixed values put back as signal * clean + noise * noise_BcHW."""
        clean, drawn = self.clean.to(x_BcHW), self.drawn.to(x_BcHW.device) > 0
        given = clean if noise == 0 and signal == 1 else signal * clean + noise * noise_BcHW
        # Chosen, not blended: what a network says under the fixed values may be anything, even not a number.
        return torch.where(drawn, x_BcHW, given)

    def hold_flow(self, x_BcHW: Tensor, noise_BcHW: Tensor, t: float) -> Tensor:
        """For x = (1 - t) clean + t noise."""
        return self.hold(x_BcHW, noise_BcHW, signal=1 - t, noise=t)

    def hold_edm(self, x_BcHW: Tensor, noise_BcHW: Tensor, sigma: float) -> Tensor:
        """For x = clean + sigma noise, the noise of unit deviation."""
        return self.hold(x_BcHW, noise_BcHW, signal=1.0, noise=sigma)

    def hold_ddpm(self, x_BcHW: Tensor, noise_BcHW: Tensor, alpha_bar: float) -> Tensor:
        """For x = sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise; alpha_bar 1 behind the last step."""
        return self.hold(x_BcHW, noise_BcHW, signal=alpha_bar**0.5, noise=(1 - alpha_bar) ** 0.5)


def paste_fixed(drawn: Image.Image, given: Image.Image, drawn_HW: Tensor) -> Image.Image:
    """A drawn picture with the given one's pixels where drawn_HW [H, W] is 0: an autoencoder keeps none exactly.

    Raises ValueError where the three are not of one size.
    """
    if not drawn.size == given.size == (drawn_HW.shape[1], drawn_HW.shape[0]):
        raise ValueError(f"the drawn picture is {drawn.size}, the given one {given.size} and the mask "
                         f"{(drawn_HW.shape[1], drawn_HW.shape[0])}; all three must be of one size.")
    mask = Image.fromarray((drawn_HW > 0).to(torch.uint8).mul(255).cpu().numpy())
    return Image.composite(drawn, given.convert("RGB"), mask)
