"""What every door does to a request before work starts: check it, price it, fill in the defaults."""

import secrets
from collections.abc import Mapping
from typing import Any

from mezzotint.sampling.cache_presets import OFF
from mezzotint.sampling.catalog import ModelCard, find_model
from mezzotint.sampling.density_presets import FULL, SAME
from mezzotint.sampling.plan import Plan, make_plan
from mezzotint.sampling.request import MAX_IMAGES, MAX_SEED, GenerateRequest, parse_request
from mezzotint.sampling.subject import check_subject


def accept(raw: GenerateRequest | Mapping[str, Any]) -> tuple[GenerateRequest, Plan]:
    """Return the complete request (no field left to a default that could change later) and its plan.

    Raises RequestError with one sentence that names the field, its value and the allowed range.
    """
    request = raw if isinstance(raw, GenerateRequest) else parse_request(raw)
    card = find_model(request.model)
    check_subject(request, card)
    plan = make_plan(request, card)
    return request.model_copy(update=_defaults(request, card.guidance_scale, card.sample_size)), plan


def any_subject(card: ModelCard) -> dict[str, Any]:
    """Fields of a request that stand for whatever is to be drawn, where only its cost counts."""
    return {"prompt": "only priced"} if card.classes is None else {"class_label": 0}


def _defaults(request: GenerateRequest, guidance_scale: float, sample_size: int) -> dict[str, Any]:
    defaults = {
        "width": sample_size,
        "height": sample_size,
        "guidance_scale": guidance_scale,
        "density": FULL,
        "guidance_density": SAME,
        "cache": OFF,
        "seed": secrets.randbelow(MAX_SEED - MAX_IMAGES + 1),
    }
    return {name: value for name, value in defaults.items() if getattr(request, name) is None}
