"""The picture of a plan: tokens and multiply-adds over the steps."""

from pathlib import Path
from typing import Any


def draw_plan(title: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Write a PNG with two panels: tokens of each branch that runs its modules, and what each step costs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    steps = [row["step"] for row in rows]
    figure, (above, below) = plt.subplots(2, figsize=(7, 4.6), sharex=True, layout="constrained")
    for key, label, line in (("tokens", "all", ":"), ("sparse_tokens", "sparse", "-"),
                             ("guidance_tokens", "sparse, of guidance", "--")):
        tokens = [row[key] for row in rows]
        if any(count is not None for count in tokens):
            above.step(steps, [float("nan") if count is None else count for count in tokens], line, where="mid",
                       label=label)
    above.set(ylabel="tokens", title=title)
    colours = {"run": "0.3", "from the cache": "0.8", "decided while drawing": "0.6"}
    for modules, colour in colours.items():
        here = [row for row in rows if (row["modules"] or "run") == modules]
        if here:
            below.bar([row["step"] for row in here], [row["macs"] / 1e9 for row in here], color=colour,
                      label=f"modules {modules}")
    below.set(ylabel="GMACs a picture", xlabel="step")
    for axis in (above, below):
        axis.set_ylim(0, 1.3 * axis.get_ylim()[1])  # room for the legend
        axis.legend(ncols=3, loc="upper right")
    figure.savefig(path, dpi=110)
    plt.close(figure)
