"""GET /media/{id}: the files of finished pictures, for their owner."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Response

from mezzotint.worker.api.callers import Caller
from mezzotint.worker.api.service import Shared

router = APIRouter(tags=["media"])

MediaId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="media_id of a job's output.")]
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}},
    304: {"description": "The caller has it already."},
}


@router.get("/media/{media_id}", response_class=Response, responses=_ANSWERS)
def media(
    media_id: MediaId, caller: Caller, service: Shared, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """Bring a picture's PNG file, with its whole request inside. A file never changes."""
    row = service.client.find_media(media_id, owner=caller.owner)
    headers = {
        "ETag": f'"{row.sha256}"',
        # Private: a shared cache does not know whose picture it is.
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'inline; filename="mezzotint-{media_id}.png"',
    }
    if headers["ETag"] in (if_none_match or ""):
        return Response(status_code=304, headers=headers)
    return Response(service.client.media(media_id, owner=caller.owner), headers=headers, media_type="image/png")
