"""`mezzotint models`: which models are here, without loading one."""

from typing import Annotated

import typer


def models(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models that are here."""
    import json

    from mezzotint.sampling.catalog import find_model, model_names

    rows = []
    for name in model_names():
        card = find_model(name)
        files = [f for kind in ("*.safetensors", "*.bin") for f in (card.folder / "transformer").glob(kind)]
        weights = sum(f.stat().st_size for f in files)
        rows.append({
            "name": name, "draws_by": "text" if card.classes is None else "class labels",
            "sample_size": card.sample_size, "patch_size": card.patch_size,
            "guidance_scale": card.guidance_scale, "num_inference_steps": card.num_inference_steps,
            "weights_bytes": weights, "folder": str(card.folder),
        })
    if json_output:
        print(json.dumps({"models": rows}))
        return
    for row in rows:
        size = "{sample_size} x {sample_size} pixels  {weights_bytes:,} bytes".format(**row)
        print(f"{row['name']}  by {row['draws_by']}  {size}  {row['folder']}")
    if not rows:
        print("no models here; `mezzotint export RUN --name NAME` makes one of a training run")
