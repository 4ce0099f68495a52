"""The service's settings: MEZZOTINT_* environment variables, with defaults that work on one machine."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote, unquote

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from mezzotint.worker.errors import SettingsError

MAX_SOCKET_PATH_BYTES = 100
"""Linux allows 107 bytes for the path of a unix socket, macOS 103."""
BROKER_SCHEMES = ("redis", "rediss", "redis+socket")

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""0 is no limit."""


def default_data_dir() -> Path:
    """`mezzotint` in the XDG data home."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "mezzotint"


def default_broker_url(data_dir: Path) -> str:
    """Where the embedded broker listens: a unix socket under the data folder, or in a short private folder
    when that path would be too long for a socket. One data folder always has the same address."""
    socket = data_dir / "broker" / "valkey.sock"
    if len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
        mark = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        socket = runtime / f"mezzotint-{os.getuid()}-{mark}" / "valkey.sock"
    return f"redis+socket://{quote(str(socket))}"


class Settings(BaseSettings):
    """All settings. A Settings made in code overrides the environment; `environment()` hands it to a child.

    Lengths of time are in seconds. See docs/service.md for the table.
    """

    model_config = SettingsConfigDict(
        env_prefix="MEZZOTINT_", frozen=True, extra="ignore", env_ignore_empty=True, validate_default=True
    )

    data_dir: Path = Field(default_factory=default_data_dir)
    broker_url: str = Field(default_factory=lambda known: default_broker_url(known["data_dir"]))
    database_url: str = Field(default_factory=lambda known: f"sqlite:///{known['data_dir']}/mezzotint.db")
    storage_url: str = Field(default_factory=lambda known: f"file://{known['data_dir']}/media")
    key_prefix: str = "mezzotint:"
    device: str = "auto"
    dtype: str = "auto"
    engine: str = "torch"
    null_step_s: Annotated[float, Field(ge=0)] = 0.05
    lease_s: Seconds = 15
    reconcile_s: Seconds = 2
    republish_s: Seconds = 5
    max_attempts: Annotated[int, Field(ge=1)] = 3
    attempt_limit_s: Seconds = 3600
    shutdown_grace_s: Seconds = 5
    preview_ttl_s: Annotated[int, Field(ge=1)] = 60
    max_queued: Annotated[int, Field(ge=1)] = 20_000
    require_token: bool = False
    public_url: str = ""
    http_wait_s: Seconds = 600
    retain_days: Limit = 0
    retain_jobs: Annotated[int, Field(ge=0)] = 0
    retain_bytes: Annotated[int, Field(ge=0)] = 0
    orphan_after_s: Seconds = 3600
    sweep_s: Seconds = 3600
    log_level: str = "INFO"
    log_format: Literal["text", "json"] = "text"

    @field_validator("data_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.expanduser().absolute()

    @field_validator("broker_url")
    @classmethod
    def _redis(cls, url: str) -> str:
        if url.partition("://")[0] not in BROKER_SCHEMES:
            raise ValueError("it must begin with redis://, rediss:// or redis+socket://")
        return url

    @property
    def socket_path(self) -> Path | None:
        """The broker's unix socket, or None for a broker on TCP."""
        scheme, _, rest = self.broker_url.partition("://")
        return Path(unquote(rest.partition("?")[0])) if scheme == "redis+socket" else None

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Settings from the environment with `given` (None means not given) on top.

        Raises SettingsError with one sentence that names the setting.
        """
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = f"MEZZOTINT_{first['loc'][0]}".upper()
            reason = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
            raise SettingsError(f"{name} is {first['input']!r}; {reason}.") from None

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child process."""
        return {f"MEZZOTINT_{name.upper()}": str(value) for name, value in self.model_dump().items()}
