"""The command line: `mezzotint COMMAND`. Each command imports what it needs when it runs."""

import typer

from mezzotint.commands.adapters import app as adapters
from mezzotint.commands.bench import app as bench
from mezzotint.commands.convert import convert
from mezzotint.commands.evaluate import evaluate
from mezzotint.commands.export import export
from mezzotint.commands.generate import generate
from mezzotint.commands.jobs import app as jobs
from mezzotint.commands.models import models
from mezzotint.commands.plan import plan
from mezzotint.commands.serve import serve
from mezzotint.commands.tokens import app as tokens
from mezzotint.commands.up import up
from mezzotint.commands.worker import worker

app = typer.Typer(
    name="mezzotint",
    help="Draw pictures with token-efficient diffusion transformers; train and serve them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (up, generate, plan, worker, serve, models, evaluate, export, convert):
    app.command()(command)
for name, group in (("adapters", adapters), ("jobs", jobs), ("tokens", tokens), ("bench", bench)):
    app.add_typer(group, name=name)


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed with one sentence, 2 usage."""
    app()


if __name__ == "__main__":
    main()
