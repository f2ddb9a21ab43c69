"""The services that the HTTP routes use, opened once."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from belljar.control.api.ingress.host_names import SandboxDomain
from belljar.control.api.request_limits import ConcurrencyLimit
from belljar.control.audit.auditor import Auditor
from belljar.control.blobs.store import Blobs, open_blobs
from belljar.control.flows.service import FlowService
from belljar.control.jobs.changes import Changes
from belljar.control.jobs.overview import OverviewService
from belljar.control.jobs.polling import polling
from belljar.control.jobs.service import JobService
from belljar.control.openid.client import OpenIdClient, openid_client
from belljar.control.projects.key_service import KeyService
from belljar.control.projects.member_service import MemberService
from belljar.control.projects.project_service import ProjectService
from belljar.control.projects.session_service import SessionService
from belljar.control.quotas.service import QuotaService, default_limits
from belljar.control.sandboxes.commands import Commands
from belljar.control.sandboxes.contexts import Contexts
from belljar.control.sandboxes.freeze_service import FreezeService
from belljar.control.sandboxes.port_service import PortService
from belljar.control.sandboxes.queue import SandboxQueue
from belljar.control.sandboxes.service import SandboxService
from belljar.control.scripts.service import ScriptService
from belljar.control.secrets.keys import open_keys
from belljar.control.secrets.service import SecretService
from belljar.control.store.audit import SqlAudit
from belljar.control.store.claims import SqlClaims
from belljar.control.store.database import Database
from belljar.control.store.job_ends import SqlJobEnds
from belljar.control.store.job_listing import SqlJobListing
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.keys import SqlKeys
from belljar.control.store.nodes import SqlNodes
from belljar.control.store.opening import open_database
from belljar.control.store.people import SqlPeople
from belljar.control.store.port_tokens import SqlPortTokens
from belljar.control.store.projects import SqlProjects
from belljar.control.store.quotas import SqlQuotas
from belljar.control.store.scripts import SqlScripts
from belljar.control.store.secrets import SqlSecrets
from belljar.control.store.sessions import SqlSessions
from belljar.control.store.usage_series import SqlUsageSeries
from belljar.images.catalog import Images
from belljar.scripts.uploads import clear_stale_uploads
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system.disk_space import DiskSpace

_SUBMITTING, _SUBMITTING_BY_KEY = 16, 8
#: Uploads occupy their four threads (`scripts.uploads`) for seconds; one is left for code in JSON.
_UPLOADING, _UPLOADING_BY_KEY = 3, 2


@dataclass(frozen=True, kw_only=True)
class Services:
    """The services of one API server."""

    settings: Settings
    database: Database
    blobs: Blobs
    images: Images
    scripts: ScriptService
    jobs: JobService
    job_store: SqlJobs
    job_listing: SqlJobListing
    overview: OverviewService
    claims: SqlClaims
    keys: SqlKeys
    auditor: Auditor
    projects: SqlProjects
    key_service: KeyService
    quotas: QuotaService
    project_service: ProjectService
    people: SqlPeople
    members: MemberService
    sessions: SessionService
    #: None: people sign in with keys only.
    openid: OpenIdClient | None
    nodes: SqlNodes
    secrets: SecretService
    flows: FlowService
    usage_series: SqlUsageSeries
    sandbox_queue: SandboxQueue
    changes: Changes
    disk: DiskSpace
    sandboxes: SandboxService
    freezing: FreezeService
    commands: Commands
    contexts: Contexts
    ports: PortService
    #: Limits of concurrent submissions and uploads, so that they do not keep reads from the database.
    submitting: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(_SUBMITTING, _SUBMITTING_BY_KEY))
    uploading: ConcurrencyLimit = field(default_factory=lambda: ConcurrencyLimit(_UPLOADING, _UPLOADING_BY_KEY))

    @property
    def sandbox_domain(self) -> SandboxDomain | None:
        """Return the domain below which ports of sandboxes have host names; None: they have none."""
        domain = self.settings.sandbox_domain
        return None if domain is None else SandboxDomain(domain, self.settings.public_url)

    @property
    def node_silence_seconds(self) -> float:
        """Return the age of the last heartbeat after which a node counts as dead; two may be missed."""
        return self.settings.lease_seconds


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open the database and the blob store, and remove stale uploads. Raises DataFolderError, HostError."""
    database = await open_database(settings)
    try:
        blobs = open_blobs(settings)
        clear_stale_uploads(settings.data_dir)
        images = Images(settings.data_dir)
        disk = disk_space_of(settings)
        quotas = QuotaService(SqlQuotas(database), settings)
        scripts = ScriptService(SqlScripts(database), blobs, images, settings, disk, quotas)
        job_store, nodes, changes = SqlJobs(database), SqlNodes(database), Changes()
        secrets = SecretService(SqlSecrets(database), open_keys(settings))
        jobs = JobService(
            job_store,
            scripts,
            images,
            blobs,
            changes,
            settings,
            quotas,
            lambda: nodes.cached_limits(settings.lease_seconds),
            disk,
            secrets,
        )
        keys, projects, people = SqlKeys(database), SqlProjects(database), SqlPeople(database)
        sessions = SqlSessions(database, keys)
        auditor = Auditor(SqlAudit(database))
        queue = SandboxQueue(database, secrets, settings.lease_seconds)
        sandboxes = SandboxService(
            queue=queue,
            images=images,
            settings=settings,
            quotas=quotas,
            secrets=secrets,
            largest=lambda: nodes.cached_limits(settings.lease_seconds),
            disk=disk,
        )
        listing = SqlJobListing(database)
        overview = OverviewService(
            SqlJobEnds(database), listing, job_store, nodes, quotas, silent_after_seconds=settings.lease_seconds
        )
        openid = openid_client(settings)
        async with (
            openid or contextlib.nullcontext(),
            auditor.running(),
            Commands() as commands,
            Contexts() as contexts,
            polling(
                changes,
                job_store.states,
                (keys.ended_since, sessions.ended_since),
                projects.suspended,
                settings.data_dir,
            ),
        ):
            yield Services(
                settings=settings,
                database=database,
                blobs=blobs,
                images=images,
                scripts=scripts,
                jobs=jobs,
                job_store=job_store,
                job_listing=listing,
                overview=overview,
                claims=SqlClaims(database, default_limits(settings)),
                keys=keys,
                auditor=auditor,
                projects=projects,
                key_service=KeyService(keys, changes),
                quotas=quotas,
                project_service=ProjectService(projects, keys, changes),
                people=people,
                members=MemberService(people, sessions, changes),
                openid=openid,
                sessions=SessionService(sessions, changes, settings),
                nodes=nodes,
                secrets=secrets,
                flows=FlowService.over(database),
                usage_series=SqlUsageSeries(database),
                sandbox_queue=queue,
                sandboxes=sandboxes,
                freezing=FreezeService(sandboxes=sandboxes, queue=queue, secrets=secrets, settings=settings),
                commands=commands,
                contexts=contexts,
                ports=PortService(SqlPortTokens(database), sandboxes, queue.machines),
                changes=changes,
                disk=disk,
            )
    finally:
        await database.close()
