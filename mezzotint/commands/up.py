"""`mezzotint up`: broker, workers and page on this machine, until Ctrl-C."""

from typing import Annotated

import typer

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def up(
    data_dir: Annotated[str | None, typer.Option(help="Where jobs, pictures and logs live.")] = None,
    host: Annotated[str, typer.Option(help="Address of the page.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 8501,
    broker_url: Annotated[str | None, typer.Option(help="A Redis server, not the embedded one.")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql://..., not the SQLite file.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to draw: auto, cpu, cuda, cuda:1 ...")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser when it is ready.")] = True,
) -> None:
    """Start everything on this machine, then draw at http://127.0.0.1:8501. Ctrl-C stops all of it."""
    from mezzotint.commands.failure import fail
    from mezzotint.ui import launch
    from mezzotint.worker.errors import ServiceError
    from mezzotint.worker.house import Page, keep_house
    from mezzotint.worker.settings import Settings

    page = Page(command=launch.command(host, port), folder=launch.APP.parent, host=host, port=port)

    def welcome() -> None:
        typer.echo(f"Mezzotint is ready at {page.address} (Ctrl-C stops it)")
        typer.echo(f"data: {settings.data_dir}   broker: {settings.broker_url}")
        if host not in LOOPBACK:
            typer.echo(f"Warning: whoever reaches {host}:{port} can draw here and see every picture.")
        if browser:
            typer.launch(page.address)

    try:
        settings = Settings.load(
            data_dir=data_dir, broker_url=broker_url, database_url=database_url, device=device
        )
        keep_house(settings, page, welcome)
    except ServiceError as error:
        fail(str(error))
