"""The gateway's application: routes, the shape of errors, and the door around them. No torch here."""

from fastapi import FastAPI
from starlette.types import ASGIApp

from mezzotint import __version__
from mezzotint.worker.api import events, health, images, jobs, media, problems, schema
from mezzotint.worker.api.callers import Doorkeeper
from mezzotint.worker.api.door import Door
from mezzotint.worker.api.numbers import HttpNumbers
from mezzotint.worker.api.service import Service
from mezzotint.worker.client import Client
from mezzotint.worker.database import Database
from mezzotint.worker.events import Events
from mezzotint.worker.settings import Settings

_ABOUT = "Jobs that are never lost, and OpenAI's image routes. docs/service.md has examples."


def make_service(settings: Settings) -> Service:
    """The doors to jobs and workers for these settings."""
    return Service(
        settings=settings, client=Client(settings), database=Database(settings.database_url), events=Events(settings),
        numbers=HttpNumbers(),
    )


def make_app(service: Service, *, needs_token: bool) -> ASGIApp:
    """The gateway as an ASGI application."""
    app = FastAPI(
        title="Mezzotint", version=__version__, description=_ABOUT, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.doorkeeper = Doorkeeper(service.database, needs_token=needs_token)
    for part in (jobs, events, images, media, health):
        app.include_router(part.router)
    problems.install(app)
    schema.describe(app, needs_token=needs_token)
    return Door(app, service.numbers, only_local=not needs_token)
