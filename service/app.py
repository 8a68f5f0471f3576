"""The application, put together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from image_search import __version__
from image_search.settings import Settings
from service import access_log, browsers, openapi, page, problems, tracing
from service.admission import MAX_REQUESTS, Admission
from service.follower import IndexFollower
from service.health import Health
from service.keys import HEADER, Keys
from service.metrics import CountRequests, Metrics
from service.originals import Originals, Origins
from service.routes import images, operation, search
from service.state import State


def create_app(settings: Settings, *, seconds_to_open: float = 0) -> FastAPI:
    """The service with these settings; it opens the index in the background.

    It begins to answer once the index is open, or so many seconds have passed.
    Raises SettingsError for API keys, a public address or a folder that cannot be used.
    """
    keys = Keys(settings)
    originals = Originals(settings.media_root)
    counters = Metrics()
    tracer = tracing.tracer()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        follower = app.state.follower = IndexFollower(settings, counters)
        follower.start()
        try:
            await asyncio.to_thread(follower.wait_until_known, seconds_to_open)
            yield State(
                follower=follower,
                health=Health(follower, settings.store),
                settings=settings,
                metrics=counters,
                admission=Admission(MAX_REQUESTS),
                keys=keys,
                originals=originals,
                origins=Origins(settings.store),
            )
        finally:
            follower.close()
            if tracer is not None:
                tracer.close()

    app: FastAPI = FastAPIOffline(
        docs_url=None,
        redoc_url=None,
        # It would lead to whatever host the request names.
        redirect_slashes=False,
        title="Image search",
        version=__version__,
        description=openapi.DESCRIPTION,
        openapi_tags=openapi.TAGS,
        lifespan=lifespan,
    )
    problems.install(app)
    app.add_middleware(CountRequests, metrics=counters)
    origins = browsers.listed(settings.cors_origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["DELETE", "GET", "HEAD", "POST", "PUT"],
            allow_headers=[HEADER, access_log.HEADER],
            expose_headers=["ETag", "Retry-After", access_log.HEADER],
        )
    app.add_middleware(
        browsers.Guard,
        hosts=browsers.Hosts(settings),
        refuse=problems.refuse_host,
        root_path=browsers.root_path(settings),
        shared=bool(origins),
    )
    if tracer is not None:
        app.add_middleware(tracing.Trace, tracer=tracer)
    app.add_middleware(access_log.AccessLog, form=settings.access_log)
    # Included, each would be looked for twice.
    for routes in (search, images, operation):
        app.router.routes.extend(routes.router.routes)
    openapi.install(app, keys, settings.store)

    app.router.routes.extend(page.routes())
    return app
