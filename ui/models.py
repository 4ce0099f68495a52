"""Which models the page offers."""

import os

from mezzotint.sampling.catalog import model_names

MODEL_VARIABLE = "MEZZOTINT_MODEL"


def names() -> list[str]:
    """Models to choose from, the default first: MEZZOTINT_MODEL (a name or the path of a model folder)
    when it is set, then those that come with the package and the person's own."""
    chosen = os.environ.get(MODEL_VARIABLE, "").strip()
    return ([chosen] if chosen else []) + [name for name in model_names() if name != chosen]
