"""Train a network from a recipe.

    accelerate launch training/train.py --config training/recipes/emoji-256.yaml --output RUN

The same command goes on where a run stopped, however it stopped.
"""

import argparse
from pathlib import Path

from mezzotint.sampling.request import RequestError
from mezzotint.training.config import ConfigError, load_config


def main() -> None:
    """Command line. Exit code 1 with one sentence when a setting, the data or the disk is wrong."""
    args = _parser().parse_args()
    try:
        if args.max_minutes is not None and not args.max_minutes > 0:
            raise ConfigError(f"--max-minutes is {args.max_minutes}; it must be more than 0.")
        config = load_config(args.config, args.set)
        from mezzotint.training.trainer import Trainer

        Trainer(config, args.output, init_from=args.init_from).run(max_minutes=args.max_minutes)
    except (ConfigError, RequestError, OSError) as error:
        raise SystemExit(f"train: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; one that exists is resumed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting")
    parser.add_argument("--init-from", metavar="MODEL", help="start from a model's weights (name or folder)")
    parser.add_argument("--max-minutes", type=float, help="stop cleanly, with a checkpoint, after so long")
    return parser


if __name__ == "__main__":
    main()
