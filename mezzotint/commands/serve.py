"""`mezzotint serve`: the HTTP gateway alone, beside the workers of this or another host."""

from typing import Annotated

import typer


def serve(
    host: Annotated[str, typer.Option(help="Address; one that others reach asks them for a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8502,
    require_token: Annotated[
        bool | None, typer.Option("--require-token", help="Ask for a token on this machine, too: behind a proxy, say.")
    ] = None,
    broker_url: Annotated[str | None, typer.Option(help="redis:// address of the broker.")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql:// or sqlite:/// address.")] = None,
    storage_url: Annotated[str | None, typer.Option(help="Where pictures are: file://, s3:// ...")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Data folder of the `mezzotint up` to join.")] = None,
) -> None:
    """Answer HTTP at /v1: jobs, and OpenAI's image routes. Workers draw; `mezzotint up` starts both.

    Without addresses it joins the `mezzotint up` of this machine.
    """
    from mezzotint.commands.failure import fail
    from mezzotint.worker.api.server import serve_http
    from mezzotint.worker.errors import ServiceError
    from mezzotint.worker.settings import Settings

    try:
        settings = Settings.load(
            data_dir=data_dir, broker_url=broker_url, database_url=database_url, storage_url=storage_url,
            require_token=require_token,
        )
        serve_http(settings, host, port)
    except ServiceError as error:
        fail(str(error))
