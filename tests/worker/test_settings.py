"""Settings: from the environment, to a child, and what is said of bad ones."""

import os
from pathlib import Path

import pytest

from mezzotint.worker.errors import SettingsError
from mezzotint.worker.settings import Settings


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MEZZOTINT_")]:
        monkeypatch.delenv(name)


def test_everything_lies_under_the_data_folder_of_the_desktop_standard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "/var/me")
    settings = Settings.load()
    assert settings.data_dir == Path("/var/me/mezzotint")
    assert settings.database_url == "sqlite:////var/me/mezzotint/mezzotint.db"
    assert settings.storage_url == "file:///var/me/mezzotint/media"
    assert settings.socket_path == Path("/var/me/mezzotint/broker/valkey.sock")


def test_what_is_given_wins_over_the_environment_and_that_over_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEZZOTINT_LEASE_S", "3")
    monkeypatch.setenv("MEZZOTINT_DEVICE", "cuda")
    settings = Settings.load(device="cpu", dtype=None)
    assert (settings.lease_s, settings.device, settings.dtype) == (3, "cpu", "auto")


def test_a_child_with_the_exported_environment_has_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(data_dir="/var/me", engine="null", null_step_s=0.5, lease_s=7)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == settings


def test_a_long_data_folder_gets_a_socket_that_the_system_allows() -> None:
    deep = Path("/var") / "/".join(["folder"] * 30)
    sockets = {Settings.load(data_dir=deep / name).socket_path for name in ("a", "b")}
    assert len(sockets) == 2
    assert all(len(str(socket)) < 104 for socket in sockets)
    assert Settings.load(data_dir=deep / "a").socket_path in sockets


def test_a_socket_path_survives_its_address() -> None:
    assert Settings.load(data_dir="/var/my pictures?#%").socket_path == Path(
        "/var/my pictures?#%/broker/valkey.sock"
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BROKER_URL", "amqp://host", "it must begin with redis://, rediss:// or redis"),
        ("LEASE_S", "-1", "greater than 0"),
        ("LEASE_S", "nan", "finite"),
        ("MAX_ATTEMPTS", "0", "greater than or equal to 1"),
    ],
)
def test_a_bad_setting_is_named_with_its_value_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"MEZZOTINT_{name}", value)
    with pytest.raises(SettingsError) as refused:
        Settings.load()
    sentence = str(refused.value)
    assert f"MEZZOTINT_{name} is" in sentence
    assert value in sentence
    assert says in sentence
    assert "\n" not in sentence
