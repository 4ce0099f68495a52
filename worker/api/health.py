"""Whether the service is there and can draw, its numbers, and its models."""

import logging
from typing import Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel

from mezzotint.sampling.catalog import find_model, model_names
from mezzotint.sampling.request import RequestError
from mezzotint.worker.api.callers import Caller
from mezzotint.worker.api.numbers import CONTENT_TYPE, ServiceNumbers, exposition
from mezzotint.worker.api.service import Shared
from mezzotint.worker.errors import DatabaseUnavailable
from mezzotint.worker.tally import Tally

logger = logging.getLogger(__name__)
router = APIRouter(tags=["service"])


class Alive(BaseModel):
    """This process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether a job sent now would be drawn. `engine` is false while the model loads."""

    ready: bool
    database: bool
    broker: bool
    engine: bool


class Model(BaseModel):
    """A model in OpenAI's shape."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mezzotint"


class ModelList(BaseModel):
    """Models in OpenAI's shape."""

    object: Literal["list"] = "list"
    data: list[Model]


@router.get("/healthz", openapi_extra={"security": []})
async def healthz() -> Alive:
    """Tell that the process answers; it asks nobody else."""
    return Alive()


@router.get(
    "/readyz", openapi_extra={"security": []},
    responses={503: {"model": Readiness, "description": "A job sent now would wait."}},
)
def readyz(response: Response, service: Shared) -> Readiness:
    """Tell whether database and broker answer and an engine has its model in memory."""
    try:
        service.database.check()
        database = True
    except DatabaseUnavailable:
        database = False
    engines = service.events.num_engines()
    found = Readiness(ready=False, database=database, broker=engines is not None, engine=bool(engines))
    if found.database and found.broker and found.engine:
        return found.model_copy(update={"ready": True})
    response.status_code = 503
    return found


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(caller: Caller, service: Shared) -> Response:
    """Bring the metrics in Prometheus' text format."""
    tally = Tally(service.database, service.events)
    return Response(exposition(service.numbers, ServiceNumbers(tally)), headers={"Content-Type": CONTENT_TYPE})


@router.get("/v1/models")
def models(caller: Caller) -> ModelList:
    """List the models, in OpenAI's shape."""
    found = [_model(name) for name in model_names()]
    return ModelList(data=[model for model in found if model is not None])


def _model(name: str) -> Model | None:
    try:
        return Model(id=name, created=int(find_model(name).folder.stat().st_mtime))
    except RequestError as error:
        logger.warning("a model cannot be offered: %s", error)
        return None
