"""The ten In-Context LoRA adapters for FLUX.1-dev that their authors published, by name. No torch here.

Canvases and the form of the captions are those of the README of ali-vilab/In-Context-LoRA.
"""

from dataclasses import dataclass
from pathlib import Path

from mezzotint.sampling.panels import NAMED_LAYOUTS, Canvas, PanelLayout, canvas_of

REPOSITORY = "ali-vilab/In-Context-LoRA"
FLUX_MULTIPLE = 16
"""Pixels of a patch of FLUX: 2 latents, each of 8 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """width, height: of the whole canvas in pixels. prompt: a template, in which {summary} and one {} a panel are to be
    filled."""

    width: int
    height: int
    layout: PanelLayout
    prompt: str

    @property
    def canvas(self) -> Canvas:
        return canvas_of(self.layout, self.width, self.height, FLUX_MULTIPLE)


def _published(width: int, height: int, layout: str, opening: str) -> Published:
    named = NAMED_LAYOUTS[layout]
    joint = ", " if layout == "storyboard" else "; "
    panels = joint.join(f"{marker} {{}}" for marker in named.markers)
    return Published(width=width, height=height, layout=named, prompt=f"{opening} {{summary}}{joint}{panels}")


PUBLISHED = {
    "couple-profile": _published(2048, 1024, "left-right", "This two-part image portrays"),
    "film-storyboard": _published(1024, 1536, "storyboard", "[MOVIE-SHOTS]"),
    "font-design": _published(1792, 1216, "four-panel", "The four-panel image showcases"),
    "home-decoration": _published(1344, 1728, "four-panel", "This four-panel image showcases"),
    "portrait-illustration": _published(1152, 1088, "left-right", "This two-panel image presents"),
    "portrait-photography": _published(1344, 1728, "four-panel", "This [FOUR-PANEL] image illustrates"),
    "ppt-templates": _published(1984, 1152, "four-panel", "This four-panel image showcases"),
    "sandstorm-visual-effect": _published(
        1408, 1600, "top-bottom", "[SANDSTORM-PSA] This two-part image showcases"
    ),
    "sparklers-visual-effect": _published(
        960, 1088, "top-bottom", "[REAL-SPARKLERS-OVERLAYS] The two-part image vividly illustrates"
    ),
    "visual-identity-design": _published(1472, 1024, "left-right", "The two-panel image showcases"),
}


def fetch(name: str) -> Path:
    """The file of a published adapter from the Hub, or from its cache. Raises ValueError where it cannot be reached."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    assert name in PUBLISHED
    try:
        return Path(hf_hub_download(REPOSITORY, f"{name}.safetensors"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(f"FILE is {name!r}; the Hub's {REPOSITORY} cannot be reached for it: {reason}.") from None
