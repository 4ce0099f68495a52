"""`mezzotint worker`: one more worker, here or on another host."""

from typing import Annotated

import typer


def worker(
    queues: Annotated[str, typer.Option(help="image (drawings), intake, or image,intake.")] = "image",
    device: Annotated[str | None, typer.Option(help="Where to draw: auto, cpu, cuda, cuda:1 ...")] = None,
    broker_url: Annotated[str | None, typer.Option(help="redis:// address of the broker.")] = None,
    database_url: Annotated[str | None, typer.Option(help="postgresql:// or sqlite:/// address.")] = None,
    storage_url: Annotated[str | None, typer.Option(help="Where pictures go: file://, s3:// ...")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Data folder of the `mezzotint up` to join.")] = None,
) -> None:
    """Start one more worker for the jobs of a broker, a database and a storage that others use too.

    Without addresses it joins the `mezzotint up` of this machine.
    """
    from mezzotint.commands.failure import fail
    from mezzotint.worker.database import Database
    from mezzotint.worker.errors import ServiceError
    from mezzotint.worker.migrate import migrate
    from mezzotint.worker.redis_client import check
    from mezzotint.worker.serve import parse_queues, serve
    from mezzotint.worker.settings import Settings

    try:
        settings = Settings.load(
            data_dir=data_dir, device=device, broker_url=broker_url, database_url=database_url,
            storage_url=storage_url,
        )
        names = parse_queues(queues)
        check(settings.broker_url)
        migrate(Database(settings.database_url))
    except ServiceError as error:
        fail(str(error))
    serve(settings, names)
