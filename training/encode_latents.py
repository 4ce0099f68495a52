"""Encode a folder of pictures with an autoencoder, once, so that training never decodes a picture.

    python -m mezzotint.training.encode_latents PICTURES --vae FOLDER --out FOLDER

PICTURES holds a folder for each class with its pictures: PICTURES/golden retriever/1.jpg. Classes are numbered from 0
in the order of their folders' names, as ImageNet's are. --vae is the folder of an AutoencoderKL, or of a pipeline that
has one, such as a copy of facebook/DiT-XL-2-256.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mezzotint.sampling.quiet_loading import quiet_loading
from mezzotint.training.config import ConfigError
from mezzotint.training.data import load_picture
from mezzotint.training.latent_data import VAE, LatentFolder

SHARD_ITEMS = 4096
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

Labelled = tuple[Path, int]


def encode_latents(
    pictures: Path, vae_folder: Path, out: Path, *, size: int = 256, batch_size: int = 8, mirror: bool = False,
    device: str = "cpu",
) -> int:
    """Write a folder of latents (see `latent_data`) and return how many there are.

    size: side of the pictures in pixels: the shorter side is fitted to it and the centre cropped.
    mirror: encode each picture a second time, left and right changed.
    Raises ConfigError with one sentence where a picture, the autoencoder or the output folder cannot be used.
    """
    if out.exists():
        raise ConfigError(f"--out is {out}; it is there already, so give another name or move it away.")
    classes, files = find_pictures(pictures)
    vae = load_autoencoder(vae_folder)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if size <= 0 or size % factor:
        raise ConfigError(f"--size is {size}; it must be a multiple of {factor}, which the autoencoder divides it by.")
    unfinished = out.absolute().with_name(f".{out.name}-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        encoder = _Encoder(vae.to(device), size, mirror)
        shards = tuple(_write_shards(encoder, files, batch_size, unfinished))
        vae.to("cpu").save_pretrained(unfinished / VAE)
        LatentFolder(
            classes=classes, channels=vae.config.latent_channels, sample_size=size // factor,
            scaling_factor=vae.config.scaling_factor, shift_factor=vae.config.shift_factor or 0.0, shards=shards,
        ).write(unfinished)
        unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sum(count for _, count in shards)


def find_pictures(folder: Path) -> tuple[tuple[str, ...], list[Labelled]]:
    """Names of the classes, and each picture with its class's number. Raises ConfigError where there are none."""
    if not folder.is_dir():
        raise ConfigError(f"PICTURES is {folder}; there is no such folder.")
    found = {
        inner.name: sorted(file for file in inner.rglob("*") if file.suffix.lower() in SUFFIXES)
        for inner in sorted(folder.iterdir()) if inner.is_dir()
    }
    classes = tuple(found)
    empty = [name for name, files in found.items() if not files]
    if not classes or empty:
        what = f"its folder {empty[0]} has none" if empty else "it has no such folder"
        raise ConfigError(f"PICTURES is {folder}; it must hold a folder for each class with its pictures "
                          f"({', '.join(SUFFIXES)}), and {what}.")
    return classes, [(file, label) for label, name in enumerate(classes) for file in found[name]]


def load_autoencoder(folder: Path) -> Any:
    """An AutoencoderKL in fp32. Raises ConfigError where the folder holds none."""
    from diffusers import AutoencoderKL

    own = folder / VAE if (folder / VAE).is_dir() else folder
    try:
        if not (own / "config.json").is_file():
            raise ConfigError(f"--vae is {folder}; it must be the folder of an AutoencoderKL, with a config.json.")
        with quiet_loading():
            return AutoencoderKL.from_pretrained(own, local_files_only=True).eval()
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"--vae is {folder}; it cannot be loaded: {' '.join(str(error).split())}") from None


class _Encoder:
    def __init__(self, vae: Any, size: int, mirror: bool) -> None:
        self.vae, self.size, self.mirror = vae, size, mirror

    @torch.no_grad()
    def __call__(self, batch: Sequence[Labelled]) -> dict[str, Tensor]:
        pictures = torch.stack([self._read(file) for file, _ in batch])
        labels = torch.tensor([label for _, label in batch])
        if self.mirror:
            pictures, labels = torch.cat([pictures, pictures.flip(-1)]), torch.cat([labels, labels])
        x = pictures.to(self.vae.device).float().div_(127.5).sub_(1)
        found = self.vae.encode(x).latent_dist
        return {"mean": found.mean.half().cpu(), "std": found.std.half().cpu(), "label": labels}

    def _read(self, file: Path) -> Tensor:
        try:
            with Image.open(file) as image:
                return load_picture(image, self.size)
        except OSError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{file} cannot be read as a picture ({reason}); take it out.") from None


def _write_shards(
    encoder: _Encoder, files: Sequence[Labelled], batch_size: int, folder: Path
) -> Iterator[tuple[str, int]]:
    """File name and item count of each shard."""
    with tqdm(total=len(files), desc="encoding", unit="picture", disable=not sys.stderr.isatty()) as bar:
        for number, start in enumerate(range(0, len(files), SHARD_ITEMS)):
            several = files[start : start + SHARD_ITEMS]
            parts = []
            for i in range(0, len(several), batch_size):
                parts.append(encoder(several[i : i + batch_size]))
                bar.update(len(several[i : i + batch_size]))
            shard = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
            save_file(shard, folder / f"latents-{number:05d}.safetensors")
            yield f"latents-{number:05d}.safetensors", len(shard["label"])


def main() -> None:
    """Command line. Exit code 1 with one sentence when a picture, the autoencoder or the disk fails."""
    args = _parser().parse_args()
    try:
        if args.batch_size < 1:
            raise ConfigError(f"--batch-size is {args.batch_size}; it must be at least 1.")
        count = encode_latents(
            args.pictures, args.vae, args.out, size=args.size, batch_size=args.batch_size, mirror=args.mirror,
            device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        )
    except (ConfigError, OSError) as error:
        raise SystemExit(f"encode_latents: {error}") from None
    print(f"{count:,} latents in {args.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, metavar="PICTURES", help="a folder with a folder for each class")
    parser.add_argument("--vae", type=Path, required=True, help="folder of an AutoencoderKL, or of a pipeline with one")
    parser.add_argument("--out", type=Path, required=True, help="folder of latents to write; it must not be there yet")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures in pixels (default 256)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures encoded at once (default 8)")
    parser.add_argument("--mirror", action="store_true", help="encode each picture mirrored, too")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; a GPU where there is one")
    return parser


if __name__ == "__main__":
    main()
