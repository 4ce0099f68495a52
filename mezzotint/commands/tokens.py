"""`mezzotint tokens`: who may come in from outside. A token is shown once, when it is made."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mezzotint.worker.database import Database

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke the tokens of the HTTP gateway and the page.")

DataDir = Annotated[str | None, typer.Option(help="Data folder of the `mezzotint up` that the tokens are for.")]
DatabaseUrl = Annotated[str | None, typer.Option(help="postgresql:// or sqlite:/// address, not the data folder's.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, so that it can be told from others.")],
    owner: Annotated[
        str | None, typer.Option(help="Whose jobs it opens: local is the page's; an owner of its own when not given.")
    ] = None,
    max_active: Annotated[int | None, typer.Option(help="Jobs of its owner that may wait or run.")] = None,
    jobs_per_day: Annotated[int | None, typer.Option(help="Jobs it may send a day (UTC).")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests it may make a minute.")] = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    json_output: Json = False,
) -> None:
    """Make a token and print it; it cannot be shown again."""
    from mezzotint.commands.failure import fail
    from mezzotint.commands.report import print_json
    from mezzotint.worker import tokens
    from mezzotint.worker.errors import ServiceError

    limits = tokens.Limits(
        max_active=max_active, jobs_per_day=jobs_per_day, requests_per_minute=requests_per_minute
    )
    try:
        token, secret = tokens.create(_database(data_dir, database_url), name, owner=owner, limits=limits)
    except ServiceError as error:
        fail(str(error))
    if json_output:
        print_json({"token": secret, **token.model_dump(mode="json")})
    else:
        print(f"{secret}\nid {token.id}, owner {token.owner}. Keep it: it cannot be shown again.")


@app.command("list")
def list_tokens(data_dir: DataDir = None, database_url: DatabaseUrl = None, json_output: Json = False) -> None:
    """List tokens, revoked ones too."""
    from mezzotint.commands.failure import fail
    from mezzotint.commands.report import print_json, print_rows
    from mezzotint.worker import tokens
    from mezzotint.worker.errors import ServiceError

    try:
        rows = [token.model_dump(mode="json") for token in tokens.list_all(_database(data_dir, database_url))]
    except ServiceError as error:
        fail(str(error))
    if json_output:
        print_json({"tokens": rows})
    elif rows:
        print_rows("Tokens", rows)
    else:
        print("no tokens; `mezzotint tokens create NAME` makes one")


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The token's id, as `list` shows it.")],
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
    json_output: Json = False,
) -> None:
    """End a token at once. Its owner's jobs and pictures stay."""
    from mezzotint.commands.failure import fail
    from mezzotint.commands.report import print_json
    from mezzotint.worker import tokens
    from mezzotint.worker.errors import ServiceError

    try:
        shown: dict[str, Any] = tokens.revoke(_database(data_dir, database_url), token_id).model_dump(mode="json")
    except ServiceError as error:
        fail(str(error))
    if json_output:
        print_json(shown)
    else:
        print(f"token {shown['id']} ({shown['name']}) is revoked")


def _database(data_dir: str | None, database_url: str | None) -> "Database":
    from mezzotint.worker.database import Database
    from mezzotint.worker.migrate import migrate
    from mezzotint.worker.settings import Settings

    database = Database(Settings.load(data_dir=data_dir, database_url=database_url).database_url)
    migrate(database)
    return database
