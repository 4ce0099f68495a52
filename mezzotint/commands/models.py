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
        weights = sum(f.stat().st_size for f in (card.folder / "transformer").glob("*.safetensors"))
        rows.append({
            "name": name, "sample_size": card.config.sample_size, "patch_size": card.config.patch_size,
            "guidance_scale": card.guidance_scale, "num_inference_steps": card.num_inference_steps,
            "weights_bytes": weights, "folder": str(card.folder),
        })
    if json_output:
        print(json.dumps({"models": rows}))
        return
    for row in rows:
        print("{name}  {sample_size} x {sample_size} pixels  {weights_bytes:,} bytes  {folder}".format(**row))
    if not rows:
        print("no models here; `mezzotint export RUN --name NAME` makes one of a training run")
