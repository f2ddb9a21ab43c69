"""Lists of jobs for people: by status, language, label, time, and text, with the names of scripts.

Language, text, and a label with a status have no index. Such a page reads at most `SCANNED_JOBS` jobs, newest first,
and says how far it got: the cursor goes on from there. Only what a list shows is read: a job's row may have a megabyte
of arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, literal, or_, select

from belljar.control.store.database import Database
from belljar.control.store.schema import job_labels, jobs, scripts
from belljar.model.ids import first_id
from belljar.model.states import Status

#: How many jobs a page of a search reads: tens of milliseconds.
SCANNED_JOBS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFilter:
    """Which jobs a list has; None: all."""

    status: Status | None = None
    language: str | None = None
    #: NAME or NAME=VALUE.
    label: str | None = None
    #: Submitted since then, and before then.
    since: datetime | None = None
    before: datetime | None = None
    #: The beginning of an id, or a part of the script's name or entrypoint, in any case.
    text: str | None = None

    @property
    def is_search(self) -> bool:
        """Return whether jobs are read that the list does not have."""
        return self.language is not None or self.text is not None or self.has_status_of_label

    @property
    def has_status_of_label(self) -> bool:
        """Return whether the status is looked up for each job of the label: no index has both."""
        return self.label is not None and self.status is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedJob:
    """What a list shows of a job."""

    id: str
    status: Status
    #: The script's name when it was uploaded; its entrypoint when it was deleted.
    name: str
    language: str
    image: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None = None
    error_code: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPage:
    """One page of a list."""

    jobs: list[ListedJob]
    #: Where the next page begins; None: there is none.
    next_cursor: str | None
    #: The submission of the oldest job that a search has read, if it stopped before the end.
    searched_to: datetime | None = None


class SqlJobListing:
    """The lists of jobs of each project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def page(self, project: str, which: JobFilter, *, limit: int = 50, cursor: str | None = None) -> JobPage:
        """Return a page of the project's jobs, newest first."""

        def read(connection: Connection) -> JobPage:
            ids = _ids(project, which, cursor)
            end = None
            if which.is_search:
                end = connection.execute(ids.offset(SCANNED_JOBS - 1).limit(1)).scalar()
            ids = ids.limit(SCANNED_JOBS if which.is_search else limit + 1)
            rows = connection.execute(_rows(ids, which).limit(limit + 1)).all()
            page = [_listed(row) for row in rows[:limit]]
            if len(rows) > limit:
                return JobPage(jobs=page, next_cursor=page[-1].id)
            reached = None if end is None else connection.execute(_submission(end)).scalar()
            return JobPage(jobs=page, next_cursor=end, searched_to=reached)

        return await self._database.reading(read)


def _ids(project: str, which: JobFilter, cursor: str | None) -> Select[str]:
    """Return the query of ids, newest first, which an index answers in that order."""
    id_: ColumnElement[str] = jobs.c.id
    if which.label is None:
        query = select(id_).where(jobs.c.project == project)
    else:
        id_ = job_labels.c.job_id
        query = select(id_.label("id")).where(job_labels.c.project == project, *_labelled(which.label))
    if which.status is not None and not which.has_status_of_label:
        query = query.where(jobs.c.status == which.status.value)
    if which.since is not None:
        query = query.where(id_ >= first_id("job", which.since))
    if which.before is not None:
        query = query.where(id_ < first_id("job", which.before))
    if cursor is not None:
        query = query.where(id_ < cursor)
    return query.order_by(id_.desc())


def _rows(ids: Select[str], which: JobFilter) -> Select[Any]:
    found = ids.subquery("found")
    name, entrypoint, language = scripts.c.name, jobs.c.spec["entrypoint"].as_string(), jobs.c.spec["language"]
    columns = (
        jobs.c.id,
        jobs.c.status,
        jobs.c.created_at,
        jobs.c.started_at,
        jobs.c.finished_at,
        func.coalesce(name, entrypoint).label("name"),
        language.as_string().label("language"),
        jobs.c.spec["image"].as_string().label("image"),
        jobs.c.spec["labels"].label("labels"),
        jobs.c.result["exit_code"].as_integer().label("exit_code"),
        jobs.c.result["error"]["code"].as_string().label("error_code"),
    )
    script = and_(scripts.c.project == jobs.c.project, scripts.c.id == jobs.c.script_id)
    source = found.join(jobs, jobs.c.id == found.c.id).outerjoin(scripts, script)
    query = select(*columns).select_from(source).order_by(found.c.id.desc())
    if which.status is not None and which.has_status_of_label:
        query = query.where(jobs.c.status == which.status.value)
    if which.language is not None:
        query = query.where(language.as_string() == which.language)
    if which.text is not None:
        text = which.text.lower()
        contains = func.instr(func.lower(func.coalesce(name, "") + literal(" ") + entrypoint), text) > 0
        begins = func.lower(func.substr(jobs.c.id, 1, len(text))) == text
        query = query.where(or_(contains, begins))
    return query


def _submission(job_id: str) -> Select[datetime]:
    return select(jobs.c.created_at).where(jobs.c.id == job_id)


def _labelled(label: str) -> list[ColumnElement[bool]]:
    name, equals, value = label.partition("=")
    named = job_labels.c.name == name
    return [named, job_labels.c.value == value] if equals else [named]


def _listed(row: Row[Any]) -> ListedJob:
    return ListedJob(
        id=row.id,
        status=Status(row.status),
        name=row.name or "",
        language=row.language or "",
        image=row.image or "",
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        exit_code=row.exit_code,
        error_code=row.error_code,
        labels=row.labels or {},
    )
