"""The maintenance services of the control plane, in the order in which they run."""

from __future__ import annotations

from belljar.control.blobs.store import Blobs
from belljar.control.maintenance.audit import AuditCleaner
from belljar.control.maintenance.backups import BackupCleaner
from belljar.control.maintenance.images import ImageCleaner
from belljar.control.maintenance.jobs import JobCleaner, StdinCleaner
from belljar.control.maintenance.logs import LogArchiver
from belljar.control.maintenance.orphans import OrphanCleaner
from belljar.control.maintenance.projects import ProjectCleaner
from belljar.control.maintenance.records import RecordCleaner
from belljar.control.maintenance.sandboxes import SandboxCleaner
from belljar.control.maintenance.scripts import ScriptCleaner
from belljar.control.maintenance.uploads import UploadCleaner
from belljar.control.quotas.repair import CounterRepair
from belljar.control.scripts.service import ScriptService
from belljar.control.store.audit import SqlAudit
from belljar.control.store.counters import SqlCounters
from belljar.control.store.database import Database
from belljar.control.store.jobs import SqlJobs
from belljar.control.store.project_removal import SqlProjectRemoval
from belljar.control.store.quotas import SqlQuotas
from belljar.control.store.retention import SqlRetention
from belljar.control.store.sandbox_pauses import SqlSandboxPauses
from belljar.control.store.sandbox_snapshots import SqlSandboxSnapshots
from belljar.control.store.sandboxes import SqlSandboxes
from belljar.control.store.scripts import SqlScripts
from belljar.images.catalog import Images
from belljar.settings import Settings
from belljar.system.maintenance import MaintenanceService


def control_services(settings: Settings, database: Database, blobs: Blobs) -> list[MaintenanceService]:
    """Return the services for the data of one control plane."""
    retention = SqlRetention(database)
    scripts = ScriptService(SqlScripts(database), blobs, Images(settings.data_dir), settings)
    return [
        # Before the jobs, whose service removes the blobs of the rows that this one removes.
        ProjectCleaner(SqlProjectRemoval(database), scripts),
        JobCleaner(settings, retention, blobs, SqlQuotas(database)),
        StdinCleaner(settings, retention, blobs),
        LogArchiver(settings, retention, blobs),
        ScriptCleaner(settings, retention, blobs),
        OrphanCleaner(settings, retention, blobs),
        RecordCleaner("nodes", settings.keep_gone_nodes_days, retention.silent_nodes),
        RecordCleaner("keys", settings.keep_revoked_keys_days, retention.revoked_keys),
        SandboxCleaner(settings, SqlSandboxes(database), SqlSandboxPauses(database), SqlSandboxSnapshots(database)),
        RecordCleaner("sessions", settings.keep_ended_sessions_days, retention.ended_sessions),
        RecordCleaner("people", settings.keep_ended_sessions_days, retention.gone_people),
        AuditCleaner(settings, SqlAudit(database)),
        UploadCleaner(settings),
        ImageCleaner(settings, SqlJobs(database)),
        RecordCleaner("usage", settings.keep_usage_days, retention.old_usage),
        RecordCleaner("job_ends", settings.keep_throughput_days, retention.old_job_ends),
        BackupCleaner(settings),
        CounterRepair(SqlCounters(database)),
    ]
