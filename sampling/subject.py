"""What a picture is to show, as its model takes it: a prompt, or the label of a class. No torch here."""

import json

from mezzotint.sampling.model_folder import ModelCard
from mezzotint.sampling.request import GenerateRequest, RequestError

SHOWN_CHARACTERS = 40


def check_subject(request: GenerateRequest, card: ModelCard) -> None:
    """Raise RequestError unless a request has what its model draws by, and nothing that the model does not read."""
    if card.classes is None:
        if request.class_label is not None:
            raise _refusal("class_label", request.class_label, f"{card.name} draws by text, so leave class_label out "
                           "and give a prompt")
        if request.prompt is None:
            raise RequestError("prompt", "prompt is missing; it must be given.")
        return
    known = f"a number from 0 to {card.classes.count - 1}" + (", or a name" if card.classes.names else "")
    for field, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if text is not None:
            raise _refusal(field, text, f"{card.name} draws by class labels and reads no text, so leave {field} out "
                           f"and give class_label, {known}")
    if request.class_label is None:
        raise RequestError("class_label", f"class_label is missing; {card.name} draws by class labels, so give "
                                          f"{known}.")
    card.classes.number(request.class_label, card.name)
    if request.guidance_scale not in (None, 1) and not getattr(card.config, "null_class", True):
        raise RequestError("guidance_scale", f"guidance_scale is {request.guidance_scale:g}; {card.name} was trained "
                                             "without a label for no class, so it must be 1.")


def _refusal(field: str, value: object, reason: str) -> RequestError:
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 3] + "..."
    return RequestError(field, f"{field} is {shown}; {reason}.")
