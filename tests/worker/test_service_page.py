"""docs/service.md tells the truth about the settings."""

from pathlib import Path

from mezzotint.worker.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "service.md"


def test_the_table_of_settings_has_each_with_its_default() -> None:
    rows = [line.split("|")[1:3] for line in PAGE.read_text().splitlines() if line.startswith("| `MEZZOTINT_")]
    listed = {name.strip(" `").removeprefix("MEZZOTINT_").lower(): default.strip(" `") for name, default in rows}
    assert listed.keys() == Settings.model_fields.keys()
    derived = {"data_dir", "broker_url", "database_url", "storage_url"}
    settings = Settings.model_fields
    assert {n: v for n, v in listed.items() if n not in derived} == {
        name: str(field.default) for name, field in settings.items() if name not in derived
    }
