"""For whoever operates the service; answered always, and without a key."""

from http import HTTPStatus
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from image_search import __version__
from image_search.duplicates import NEAR_DUPLICATE_COSINE
from service import metrics, problems
from service.schemas import HealthResponse, StatusResponse

router = APIRouter(tags=["operation"])

_UNAVAILABLE: Final = (
    "starting",
    "no_index",
    "model_mismatch",
    "model_unavailable",
    "store_unavailable",
    "misconfigured",
    "engine_failed",
    "deadline_exceeded",
)


@router.get(
    "/health",
    operation_id="health",
    summary="Whether a search would succeed",
    responses=problems.responses(*_UNAVAILABLE, anywhere=False),
)
async def health(request: Request) -> HealthResponse:
    """200 when a search would succeed, 503 with the reason when not."""
    manifest, count = await request.state.health.check()
    settings = request.state.settings
    return HealthResponse(
        status="ok",
        store=settings.store,
        index=settings.index,
        count=count,
        version=__version__,
        near_duplicate_cosine=NEAR_DUPLICATE_COSINE[manifest.model.recipe],
        originals=request.state.originals.are_served,
        **dict(manifest),
    )


@router.get(
    "/livez",
    operation_id="livez",
    summary="Whether the process answers",
)
async def livez() -> StatusResponse:
    """200 as long as the process answers at all: a process that does not is to be restarted."""
    return StatusResponse(status="ok")


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Whether model and index are loaded",
    responses=problems.responses(*_UNAVAILABLE, anywhere=False),
)
async def readyz(request: Request) -> StatusResponse:
    """200 when requests can be sent here: model and index are loaded, and the engine works.

    Unlike `/health`, it sends nothing to the store.
    """
    request.state.follower.check()
    return StatusResponse(status="ok")


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Counts and times for Prometheus",
    response_class=PlainTextResponse,
    status_code=HTTPStatus.OK,
)
def text(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(request.state.metrics.text(), media_type=metrics.MEDIA_TYPE)
