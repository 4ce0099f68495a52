"""Pictures to PNG bytes that carry their request, and back."""

import hashlib
import io
import json
from typing import Any

from PIL import Image, PngImagePlugin

from mezzotint.sampling.engine import Drawn
from mezzotint.sampling.request import GenerateRequest

METADATA_KEY = "mezzotint"


def encode_png(image: Image.Image, metadata: dict[str, Any]) -> bytes:
    """PNG bytes with `metadata` as JSON in the text chunk "mezzotint"."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(metadata, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def read_metadata(image: Image.Image) -> dict[str, Any] | None:
    """The metadata that `encode_png` wrote, or None."""
    text = getattr(image, "text", {}).get(METADATA_KEY)
    return json.loads(text) if text else None


def provenance(request: GenerateRequest, drawn: Drawn, index: int) -> dict[str, Any]:
    """Everything needed to draw picture `index` of a request again, alone."""
    shown = request.model_dump(mode="json") | {"seed": drawn.seeds[index], "num_images": 1}
    if not request.include_prompt_in_metadata:
        shown = {k: v for k, v in shown.items() if k not in ("prompt", "negative_prompt", "class_label")}
    return {
        "request": shown,
        "model": {"name": drawn.model, "fingerprint": drawn.fingerprint},
        "device": drawn.device,
        "dtype": drawn.dtype,
        "generator": "mezzotint",
    }


def sha256_hex(data: bytes) -> str:
    """Content address of a media file."""
    return hashlib.sha256(data).hexdigest()
