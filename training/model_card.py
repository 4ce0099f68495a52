"""The card of an exported model: what it was trained on, how, for how long, and its loss curve."""

from pathlib import Path
from typing import Any

import yaml

from mezzotint.training.class_config import ClassTrainConfig
from mezzotint.training.config import TrainConfig, to_mapping
from mezzotint.training.hardware import num_cores
from mezzotint.training.metrics_log import read_metrics

CURVE_FILE = "loss.png"


def write_card(
    folder: Path, name: str, run: Path, config: TrainConfig | ClassTrainConfig, state: dict[str, Any]
) -> None:
    """Write README.md and, when the run kept metrics, loss.png into a model folder."""
    metrics = [m for m in read_metrics(run / "metrics.jsonl") if m["step"] < state["step"]]
    if metrics:
        draw_curve(metrics, folder / CURVE_FILE, _LOSSES[config.family])
    hours, samples = state["seconds"] / 3600, state["step"] * config.batch_size
    # Checkpoints of older versions do not say it.
    hardware = state.get("hardware") or f"{num_cores()} CPU cores"
    text = f"""# {name}

{_KINDS[config.family]}

| | |
|---|---|
| {_what_it_draws(config)} |
| network | {config.model.num_layers} blocks, width {config.model.hidden_size}, {config.model.num_heads} heads |
| data | `{Path(config.data.path).name}` |
| training | {state['step']:,} steps, {samples:,} pictures seen, {hours:.2f} hours on {hardware} |
{_encoder_row(state)}
{f"![loss over training]({CURVE_FILE})" if metrics else ""}

## Recipe

```yaml
{yaml.safe_dump(_recipe(config), sort_keys=False)}```
"""
    (folder / "README.md").write_text(text, encoding="utf-8")


_KINDS = {
    "text": "A text-to-image diffusion transformer trained from scratch with Mezzotint.",
    "class": "A class-conditional diffusion transformer over latents, trained with Mezzotint.",
}
_LOSSES = {"text": "velocity loss", "class": "DDPM loss"}


def _what_it_draws(config: TrainConfig | ClassTrainConfig) -> str:
    model = config.model
    what, unit = ("latents", "values") if isinstance(config, ClassTrainConfig) else ("pictures", "pixels")
    return f"{what} | {model.sample_size} x {model.sample_size} {unit}, patches of {model.patch_size}"


def _encoder_row(state: dict[str, Any]) -> str:
    return f"| text encoder | {state['text_encoder']} |\n" if "text_encoder" in state else ""


def _recipe(config: TrainConfig | ClassTrainConfig) -> dict[str, Any]:
    """The settings without the path, which names a folder of the machine that trained."""
    values = to_mapping(config)
    values["data"] = values["data"] | {"path": Path(config.data.path).name}
    return _plain(values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def draw_curve(metrics: list[dict[str, Any]], path: Path, measured: str = "velocity loss") -> None:
    """Loss over pictures seen, each step faint and a running median of 50 steps strong."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    steps, losses = [m["step"] for m in metrics], [m["loss"] for m in metrics]
    window = min(50, len(losses))
    smooth = [float(np.median(losses[max(0, i - window + 1) : i + 1])) for i in range(len(losses))]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot(steps, losses, color="0.8", linewidth=0.6)
    axes.plot(steps, smooth, color="black", linewidth=1.4)
    axes.set(xlabel="step", ylabel=measured, yscale="log")
    figure.savefig(path, dpi=110)
    plt.close(figure)
