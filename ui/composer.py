"""The left side of Create: what to draw, how, and what it will cost."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from mezzotint.sampling.catalog import Classes, ModelCard, find_model
from mezzotint.sampling.density_presets import FULL, PRUNING_RATES
from mezzotint.sampling.intake import accept, any_subject
from mezzotint.sampling.plan import Plan
from mezzotint.sampling.request import MAX_PROMPT_CHARACTERS, RequestError
from mezzotint.ui import address, markup, models, words
from mezzotint.ui.connection import client
from mezzotint.worker.errors import ServiceError

FIELDS = tuple(words.LABELS)
OF_THE_MODEL = ("width", "height", "num_inference_steps", "guidance_scale", "class_label")
EXAMPLES = ("a red apple", "a yellow taxi", "a smiling cat", "a blue heart", "a firefighter")
REFUSED = "refused"
"""Session key of the last refusal: (field, its value then, sentence). It stands until the field changes."""


def show() -> None:
    """Draw the prompt or the choice of a class, the settings and the cost.

    Raises RequestError when the model cannot be read.
    """
    card = find_model(_default_model())
    _fill_in(card)
    plan, complaints = _check(card)
    with st.container(key="mz-compose"):
        _subject(card, complaints)
        _cost(plan, complaints)
        if card.classes is None:
            _examples()
    with st.container(key="mz-settings"):
        _settings(card, complaints)


def use(request: Mapping[str, Any]) -> None:
    """Put a job's settings into the composer; its model only while that is still offered."""
    for field in FIELDS:
        value = request.get(field)
        if value is not None and (field != "model" or value in models.names()):
            st.session_state[field] = value


def submit(request: Mapping[str, Any]) -> None:
    """Queue a job and look at it, or keep the refusal for the field that it is about."""
    st.session_state.pop(REFUSED, None)
    try:
        job = client().submit(request)
    except RequestError as error:
        st.session_state[REFUSED] = (error.field, st.session_state.get(error.field), str(error))
    except ServiceError as error:
        st.session_state[REFUSED] = ("prompt", st.session_state.get("prompt"), str(error))
    else:
        address.put("job", job.id)


def _default_model() -> str:
    offered = models.names()
    if not offered:
        raise RequestError("model", "No model is installed; make one from a training run with "
                                    "`mezzotint export`.")
    chosen = st.session_state.get("model")
    return chosen if chosen in offered else offered[0]


def _fill_in(card: ModelCard) -> None:
    defaults = {
        "prompt": "",
        "model": card.name,
        "width": card.sample_size,
        "height": card.sample_size,
        "num_inference_steps": card.num_inference_steps,
        "guidance_scale": card.guidance_scale,
        "seed": None,
        "num_images": 1,
    }
    for field, value in defaults.items():
        st.session_state.setdefault(field, value)
    if card.classes is None:
        st.session_state.pop("class_label", None)
    else:
        st.session_state["class_label"] = _offered_label(card.classes, st.session_state.get("class_label"))
    if card.config.segments is None:  # a density that another model or a job left here has no widget to change it
        st.session_state.pop("density", None)
    else:
        st.session_state.setdefault("density", FULL)


def _offered_label(classes: Classes, wanted: int | str | None) -> int | str:
    """A class as the page offers it; the first one where there is no such class."""
    offered = classes.labels()
    try:
        return offered[0 if wanted is None else classes.number(wanted, "this model")]
    except RequestError:
        return offered[0]


def _asked() -> dict[str, Any]:
    values = {field: st.session_state.get(field) for field in FIELDS}
    if values["class_label"] is not None:  # what was typed for another model waits for it
        values["prompt"] = None
    return {field: value for field, value in values.items() if value is not None}


def _check(card: ModelCard) -> tuple[Plan | None, dict[str, str]]:
    """The plan of the settings as they stand, and a sentence for each field that is not right."""
    complaints: dict[str, str] = {}
    asked = _asked() | any_subject(card)
    while True:  # each refusal takes its field out, so that the next one is found too
        try:
            _, plan = accept(asked)
        except RequestError as error:
            complaints[error.field] = str(error)
            if asked.pop(error.field, None) is None:
                return None, _standing_refusal() | complaints
        else:
            return None if complaints else plan, _standing_refusal() | complaints


def _standing_refusal() -> dict[str, str]:
    field, value, sentence = st.session_state.get(REFUSED, ("", None, ""))
    return {field: sentence} if sentence and st.session_state.get(field) == value else {}


def _subject(card: ModelCard, complaints: Mapping[str, str]) -> None:
    with st.form("mz-prompt", border=False):
        if card.classes is None:
            st.text_area(
                "Prompt", key="prompt", height=112, max_chars=MAX_PROMPT_CHARACTERS, persist_state="session",
                placeholder="Say in a few words what to draw",
            )
        else:
            st.selectbox(
                words.LABELS["class_label"], card.classes.labels(), key="class_label", persist_state="session",
                format_func=words.class_name,
            )
        markup.complaint(complaints.get("prompt") or complaints.get("class_label"))
        st.form_submit_button("Generate", type="primary", width="stretch", on_click=_submit_asked)


def _submit_asked() -> None:
    submit(_asked())


def _submit_example(prompt: str) -> None:
    st.session_state["prompt"] = prompt
    _submit_asked()


def _cost(plan: Plan | None, complaints: Mapping[str, str]) -> None:
    """One line of constant height, so that nothing moves when a number changes."""
    if plan is None:
        wrong = [label for field, label in words.LABELS.items() if field in complaints and field != "prompt"]
        markup.text("mz-cost", f"Correct {' and '.join(wrong)} to see the cost.")
        return
    seconds = words.expected_seconds(client().list(limit=50).jobs, st.session_state["model"], plan.flops)
    expected = "" if seconds is None else f", about {words.duration(seconds)}"
    markup.text("mz-cost", f"{words.work(plan.flops)} of work{expected}")


def _examples() -> None:
    with st.container(key="mz-examples", horizontal=True, gap="xsmall"):
        for index, prompt in enumerate(EXAMPLES):
            st.button(prompt, key=f"example-{index}", on_click=_submit_example, args=(prompt,))


def _settings(card: ModelCard, complaints: Mapping[str, str]) -> None:
    side = {"value": card.sample_size, "step": card.patch_size}
    _number_pair(complaints, width=side, height=side)
    _number_pair(
        complaints,
        num_inference_steps={"value": card.num_inference_steps, "step": 1},
        guidance_scale={"value": card.guidance_scale, "step": 0.5, "format": "%.1f"},
    )
    _number_pair(
        complaints,
        seed={"value": None, "step": 1, "placeholder": "random"},
        num_images={"value": 1, "step": 1},
    )
    if len(offered := models.names()) > 1:
        st.selectbox("Model", offered, key="model", persist_state="session", on_change=_forget_defaults)
    markup.complaint(complaints.get("model"))
    if card.config.segments is not None:
        _density()
        markup.complaint(complaints.get("density"))


def _density() -> None:
    """Densities by name, and a pair of rates where a job's settings brought one."""
    offered = dict.fromkeys([*PRUNING_RATES, st.session_state["density"]])
    st.selectbox(words.LABELS["density"], [*offered], key="density", persist_state="session")


def _forget_defaults() -> None:
    """Another model has other sizes and other best settings."""
    for field in OF_THE_MODEL:
        st.session_state.pop(field, None)


def _number_pair(complaints: Mapping[str, str], **fields: Mapping[str, Any]) -> None:
    for column, (field, options) in zip(st.columns(2, gap="small", wrap=False), fields.items(), strict=True):
        column.number_input(words.LABELS[field], key=field, persist_state="session", **options)
    for field in fields:
        markup.complaint(complaints.get(field))
