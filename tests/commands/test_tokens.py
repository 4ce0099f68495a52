"""`mezzotint tokens`: made once, shown once, listed without their secret, revoked at once."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from mezzotint.worker import tokens
from mezzotint.worker.database import Database


def run(service: Any, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mezzotint", "tokens", *command], env=os.environ | service.settings.environment(),
        capture_output=True, text=True, timeout=180, check=False,
    )


def test_a_token_is_made_listed_and_revoked(service: Any) -> None:
    assert "no tokens" in run(service, "list").stdout
    made = json.loads(run(service, "create", "laptop", "--max-active", "5", "--json").stdout)
    secret = made.pop("token")
    database = Database(service.settings.database_url)
    found = tokens.find(database, secret)
    assert found is not None
    assert found.model_dump(mode="json") == made
    assert (made["name"], made["owner"], made["max_active"]) == ("laptop", f"token-{made['id']}", 5)
    listed = run(service, "list", "--json").stdout
    assert json.loads(listed) == {"tokens": [made]}
    assert secret not in listed
    assert "laptop" in run(service, "list").stdout
    assert run(service, "revoke", made["id"]).stdout == f"token {made['id']} (laptop) is revoked\n"
    assert tokens.find(database, secret) is None
    again = json.loads(run(service, "revoke", made["id"], "--json").stdout)
    assert again["revoked_at"] == json.loads(run(service, "list", "--json").stdout)["tokens"][0]["revoked_at"]


def test_a_token_made_for_people_says_to_keep_it(service: Any) -> None:
    lines = run(service, "create", "laptop", "--owner", "ann").stdout.splitlines()
    assert lines[0].startswith("mzt_")
    assert len(lines[0]) == 47
    assert "owner ann. Keep it" in lines[1]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["create", ""], "name is ''; give 1 to 64 letters"),
        (["create", "a\nb"], "name is 'a\\nb'"),
        (["create", "x", "--owner", "a b"], "owner is 'a b'"),
        (["create", "x", "--jobs-per-day", "0"], "jobs_per_day is 0; it must be from 1"),
        (["revoke", "nope"], "there is no token 'nope'"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_sentence(service: Any, command: list[str], says: str) -> None:
    done = run(service, *command)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert says in done.stderr
