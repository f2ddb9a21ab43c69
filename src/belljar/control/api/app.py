"""The HTTP application: routes by resource behind the middleware; every error is a problem document.

Requests for the host names of ports go to ingress/host_ingress.py. All others pass SecurityHeaders, RequestContext (id,
access log, failures), Preflight (CORS), AuditMiddleware (the audit log), AuthMiddleware (key, limits), then the route.
"""

from __future__ import annotations

import functools

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from belljar import __version__
from belljar.control.api.audit_middleware import AuditMiddleware
from belljar.control.api.auth_middleware import AuthMiddleware
from belljar.control.api.authentication import Authentication
from belljar.control.api.cors import Cors, Preflight
from belljar.control.api.file_descriptors import max_connections
from belljar.control.api.ingress.host_ingress import HostIngress, HostRouter
from belljar.control.api.openapi import describe
from belljar.control.api.problems import handle_errors
from belljar.control.api.request_context import RequestContext
from belljar.control.api.routes import (
    artifacts,
    audit,
    flows,
    health,
    images,
    jobs,
    keys,
    logs,
    members,
    metrics,
    nodes,
    openid,
    projects,
    quotas,
    sandbox_attach,
    sandbox_contexts,
    sandbox_files,
    sandbox_freezing,
    sandbox_port_tokens,
    sandbox_ports,
    sandbox_processes,
    sandbox_tunnel,
    sandbox_watch,
    sandboxes,
    scripts,
    secrets,
    sessions,
    sign_in,
)
from belljar.control.api.routes.dashboard import audit as audit_pages
from belljar.control.api.routes.dashboard import images as image_pages
from belljar.control.api.routes.dashboard import jobs as job_pages
from belljar.control.api.routes.dashboard import keys as key_pages
from belljar.control.api.routes.dashboard import members as member_pages
from belljar.control.api.routes.dashboard import nodes as node_pages
from belljar.control.api.routes.dashboard import overview, playground, static
from belljar.control.api.routes.dashboard import projects as project_pages
from belljar.control.api.routes.dashboard import sandbox_files as sandbox_file_pages
from belljar.control.api.routes.dashboard import sandbox_freezing as sandbox_freezing_pages
from belljar.control.api.routes.dashboard import sandbox_processes as sandbox_process_pages
from belljar.control.api.routes.dashboard import sandboxes as sandbox_pages
from belljar.control.api.routes.dashboard import secrets as secret_pages
from belljar.control.api.routes.dashboard import usage as usage_pages
from belljar.control.api.routes.secrets import SecretBody
from belljar.control.api.rules import ruled_routes
from belljar.control.api.security_headers import SecurityHeaders
from belljar.control.api.services import Services
from belljar.control.projects.key_request import NewKey, Rotation
from belljar.control.projects.people import MemberChange
from belljar.control.projects.project_request import NewProject, ProjectChange
from belljar.control.sandboxes.code_request import ContextRequest, DefaultRunRequest, RunRequest
from belljar.control.sandboxes.request import (
    ExecRequest,
    Extension,
    FilePatch,
    ForkRequest,
    PortTokenRequest,
    SandboxChange,
    SandboxRequest,
    SignalRequest,
    SnapshotRequest,
)
from belljar.model.job_options import JobOptions, JobRequest
from belljar.model.quotas import ProjectQuotas
from belljar.model.sandbox_values import TerminalSize

_ROUTES = (
    scripts,
    jobs,
    logs,
    artifacts,
    images,
    nodes,
    health,
    metrics,
    projects,
    members,
    quotas,
    keys,
    secrets,
    audit,
    sessions,
    sign_in,
    openid,
    static,
    overview,
    job_pages,
    playground,
    sandbox_pages,
    sandbox_process_pages,
    sandbox_freezing_pages,
    sandbox_file_pages,
    image_pages,
    node_pages,
    key_pages,
    secret_pages,
    member_pages,
    project_pages,
    usage_pages,
    audit_pages,
    sandboxes,
    sandbox_processes,
    sandbox_attach,
    sandbox_contexts,
    sandbox_files,
    sandbox_freezing,
    flows,
    sandbox_watch,
    sandbox_port_tokens,
    sandbox_tunnel,
    sandbox_ports,  # last: it takes every path below a port
)
#: The models that routes read from their bodies themselves.
_MODELS = (
    JobOptions,
    JobRequest,
    NewKey,
    Rotation,
    NewProject,
    ProjectChange,
    ProjectQuotas,
    MemberChange,
    SecretBody,
    SandboxRequest,
    SandboxChange,
    PortTokenRequest,
    Extension,
    SnapshotRequest,
    ForkRequest,
    ExecRequest,
    SignalRequest,
    TerminalSize,
    FilePatch,
    ContextRequest,
    RunRequest,
    DefaultRunRequest,
)


def create_app(services: Services | None) -> FastAPI:
    """Return the application over these services; without them, only for its OpenAPI description."""
    app = FastAPI(
        title="belljar",
        version=__version__,
        description="Run untrusted code, each job in its own microVM.",
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=_operation_name,
        # The framework's own would send what requests contain wherever the environment says (system/tracing.py).
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.services = services
    handle_errors(app)
    app.router.routes.extend(_router().routes)
    ruled_routes(app)  # raises for a route without a rule
    describe(app, _MODELS)
    if services is not None:
        authentication = app.state.authentication = Authentication(
            services.keys,
            services.projects,
            services.sessions,
            services.changes,
            public_url=services.settings.public_url,
            is_on=services.settings.auth == "on",
        )
        app.add_middleware(
            AuthMiddleware,
            authentication=authentication,
            settings=services.settings,
            changes=services.changes,
            max_requests=max_connections(services.settings),
        )
        app.add_middleware(AuditMiddleware, auditor=services.auditor)
    cors = Cors(services.settings.cors_origins if services is not None else ())
    app.add_middleware(Preflight, cors=cors)
    app.add_middleware(RequestContext)
    app.add_middleware(SecurityHeaders, cors=cors)
    if services is not None and (domain := services.sandbox_domain) is not None:
        # Half of the connections: whoever reads public ports leaves room for the API.
        ingress = HostIngress(services, domain, max_connections(services.settings) // 2)
        app.add_middleware(HostRouter, domain=domain, ingress=ingress)
    return app


@functools.cache
def _router() -> APIRouter:
    """Return the routes of every application: to analyse their signatures takes 0.1 s."""
    router = APIRouter(generate_unique_id_function=_operation_name)
    for routes in _ROUTES:
        router.include_router(routes.router)
    return router


def _operation_name(route: APIRoute) -> str:
    return route.name
