"""`mezzotint up`: broker, workers, HTTP gateway and page on this machine, until Ctrl-C."""

from typing import Annotated

import typer


def up(
    data_dir: Annotated[str | None, typer.Option(help="Where jobs, pictures and logs live.")] = None,
    host: Annotated[
        str, typer.Option(help="Address of page and gateway; one that others reach asks them for a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65534, help="Port of the page.")] = 8501,
    api_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the HTTP gateway; the page's + 1 when not given.")
    ] = None,
    broker_url: Annotated[str | None, typer.Option(help="A Redis server, not the embedded one.")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql://..., not the SQLite file.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to draw: auto, cpu, cuda, cuda:1 ...")] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser when it is ready.")] = True,
) -> None:
    """Start everything on this machine, then draw at http://127.0.0.1:8501. Ctrl-C stops all of it."""
    from mezzotint.commands.failure import fail
    from mezzotint.ui import launch
    from mezzotint.worker.access import needs_token
    from mezzotint.worker.errors import ServiceError
    from mezzotint.worker.house import Gateway, Page, keep_house
    from mezzotint.worker.settings import Settings

    gateway = Gateway(host=host, port=api_port or port + 1)

    def welcome() -> None:
        typer.echo(f"Mezzotint is ready at {page.address} (Ctrl-C stops it)")
        typer.echo(f"HTTP: {gateway.address}/v1   data: {settings.data_dir}   broker: {settings.broker_url}")
        if browser:
            typer.launch(page.address)

    try:
        settings = Settings.load(
            data_dir=data_dir, broker_url=broker_url, database_url=database_url, device=device
        )
        guarded = needs_token(settings, host)
        settings = settings.model_copy(update={"require_token": guarded})
        command = launch.command(host, port, needs_token=guarded)
        page = Page(command=command, folder=launch.APP.parent, host=host, port=port)
        keep_house(settings, page, gateway, welcome)
    except ServiceError as error:
        fail(str(error))
