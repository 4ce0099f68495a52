"""When the service asks for a token: always, unless only this machine can reach it."""

from mezzotint.worker import tokens
from mezzotint.worker.database import Database
from mezzotint.worker.errors import ServiceError
from mezzotint.worker.ports import is_loopback
from mezzotint.worker.settings import Settings


def needs_token(settings: Settings, host: str) -> bool:
    """Whether whoever reaches a server on `host` must show a token."""
    return settings.require_token or not is_loopback(host)


def check_reachable(settings: Settings, host: str, database: Database) -> None:
    """Raises ServiceError when a token is needed and there is none: nobody could come in."""
    if needs_token(settings, host) and not tokens.has_usable(database):
        raise ServiceError(
            f"host {host} asks for a token and there is none; make one with `mezzotint tokens create NAME`, "
            "or stay on 127.0.0.1."
        )
