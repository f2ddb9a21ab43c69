"""Who works with commands on the host's data folder, and the record of what such a command did."""

from __future__ import annotations

import os
import pwd

import structlog

from belljar.control.audit.entry import Actor, ActorKind, Entry
from belljar.control.store.audit import SqlAudit
from belljar.control.store.opening import open_database
from belljar.model.errors import BelljarError
from belljar.settings import Settings

log = structlog.get_logger()


def local_operator() -> Actor:
    """Return the user of this process: `uid:0`, with the name of the account."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = None
    return Actor(kind=ActorKind.OPERATOR, id=f"uid:{uid}", name=name)


async def record_locally(settings: Settings, action: str, changed: str | None, **details: object) -> None:
    """Record what a command did to files of the data folder, if it has a database. A failure is logged, not raised."""
    if settings.database_url is None and not settings.paths.database.exists():
        return  # no server has used this data folder
    entry = Entry(actor=local_operator(), action=action, object=changed, details=details)
    try:
        database = await open_database(settings, migrate=False)
        try:
            await SqlAudit(database).append([entry])
        finally:
            await database.close()
    except BelljarError as error:
        log.error("audit_write_failed", error=error.message, action=action, object=changed)
