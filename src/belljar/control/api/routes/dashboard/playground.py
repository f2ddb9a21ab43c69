"""/playground: write a script and run it at once, or run a job again with changes."""

from __future__ import annotations

import contextlib
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import RedirectResponse, Response

from belljar.control.api.audited import audited
from belljar.control.api.dependencies import IdentityDep, ServicesDep
from belljar.control.api.json_response import json_response
from belljar.control.api.problems import message_of
from belljar.control.api.routes.dashboard.pages import Pages, PagesDep
from belljar.control.api.rules import demand, require
from belljar.control.api.services import Services
from belljar.control.jobs.blob_names import stdin_blob
from belljar.control.projects.scopes import Scope
from belljar.control.web.errors import wants_page
from belljar.control.web.examples import with_examples
from belljar.control.web.job_form import MAX_FORM_BYTES, empty_form, form_of, request_of
from belljar.model.errors import BelljarError, InvalidOption, NotFound, QuotaExceeded, UnknownImage, UnknownLanguage
from belljar.model.job import Job

router = APIRouter(include_in_schema=False)

#: The longest standard input that a form shows again.
_MAX_STDIN_BYTES = 64 * 1024
#: Errors that another value of a field mends: the page shows them above the form, with what was entered.
_OF_FIELDS = (InvalidOption, QuotaExceeded, UnknownImage, UnknownLanguage)


@router.get("/playground", dependencies=[require(Scope.JOBS_RUN)])
async def show_playground(
    pages: PagesDep,
    services: ServicesDep,
    identity: IdentityDep,
    job: Annotated[str | None, Query(max_length=100)] = None,
    language: Annotated[str, Query(max_length=64)] = "python",
) -> Response:
    """Show the form: with an example, or with what a job ran."""
    if job is not None:
        # The form has all of a job: its code, arguments, environment and standard input.
        demand(identity, Scope.JOBS_READ)
        demand(identity, Scope.SCRIPTS_READ)
        again = await services.jobs.get(identity.project, job)
        return await _form(pages, services, await _again(services, again), again=again)
    examples = with_examples(services.images.languages())
    chosen = language if language in examples else next(iter(examples), "")
    return await _form(pages, services, empty_form() | {"language": chosen, "code": examples.get(chosen, "")})


@router.post("/playground", dependencies=[require(Scope.JOBS_RUN)])
@audited("job.submit")
async def run_form(request: Request, pages: PagesDep, services: ServicesDep, identity: IdentityDep) -> Response:
    """Submit the form: lead to its job; a script of the page gets the job's id instead."""
    fields = await pages.form(MAX_FORM_BYTES)
    try:
        submission = request_of(fields)
        async with services.submitting.slot(identity.id):
            job = await services.jobs.submit(identity.project, submission)
    except _OF_FIELDS as error:
        if not wants_page(request.scope):
            raise
        message = message_of(error, is_operator=identity.is_operator)
        return await _form(pages, services, empty_form() | fields, status=error.status, error=message)
    if wants_page(request.scope):
        return RedirectResponse(f"/jobs/{job.id}", 303)
    return json_response({"job_id": job.id}, 202)


async def _form(
    pages: Pages,
    services: Services,
    fields: dict[str, str],
    *,
    status: int = 200,
    error: str | None = None,
    again: Job | None = None,
) -> Response:
    return await pages.show(
        "playground.html",
        status=status,
        fields=fields,
        error=error,
        again=again,
        examples=with_examples(services.images.languages()),
        images=[image.name for image in services.images.list()],
    )


async def _again(services: Services, job: Job) -> dict[str, str]:
    """Return the form of a job, with its code and standard input as far as they are short texts and still there."""
    code, stdin = None, None
    with contextlib.suppress(NotFound):
        code = await services.scripts.source(job.project, job.script_id)
    if 0 < job.stdin_bytes <= _MAX_STDIN_BYTES:
        with contextlib.suppress(BelljarError, UnicodeDecodeError):  # removed with age, or no text
            parts = [part async for part in services.blobs.stream(stdin_blob(job.id))]
            stdin = b"".join(parts).decode()
    return form_of(job, code, stdin)
