"""The HTTP application: routes by resource, behind one gate, every error a problem document."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.routing import APIRoute

from belljar import __version__
from belljar.control.api.auth_middleware import AuthMiddleware
from belljar.control.api.descriptors import max_connections
from belljar.control.api.openapi import describe
from belljar.control.api.problems import answer_errors
from belljar.control.api.request_context import RequestContext
from belljar.control.api.routes import artifacts, host, jobs, keys, logs, scripts
from belljar.control.api.services import Services
from belljar.model.job_options import JobOptions, JobRequest

_ROUTERS = (scripts.router, jobs.router, logs.router, artifacts.router, host.router, keys.router)


def create_app(services: Services | None) -> FastAPI:
    """The application over these services; without any, only its OpenAPI description can be asked for."""
    app = FastAPI(
        title="belljar",
        version=__version__,
        description="Runs code that you don't trust, each job sealed in its own microVM.",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_name,
    )
    app.state.services = services
    answer_errors(app)
    for router in _ROUTERS:
        app.include_router(router)
    describe(app, (JobOptions, JobRequest, keys.NewKey))
    if services is not None:
        app.add_middleware(
            AuthMiddleware,
            keys=services.keys,
            settings=services.settings,
            changes=services.changes,
            max_requests=max_connections(services.settings),
        )
    app.add_middleware(RequestContext)
    return app


def _operation_name(route: APIRoute) -> str:
    return route.name
