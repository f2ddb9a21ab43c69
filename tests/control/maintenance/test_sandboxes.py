"""The records of ended sandboxes go after their retention period; those of others stay."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from belljar.control.api.services import Services
from belljar.control.maintenance.sandboxes import SandboxCleaner
from belljar.control.store.sandbox_tables import sandbox_labels, sandboxes
from belljar.model.sandbox import EndReason
from belljar.settings import Settings
from belljar.system.maintenance import ServiceRecord
from support.sandboxes import new_sandbox
from support.served import served


def cleaner_of(services: Services, settings: Settings | None = None) -> SandboxCleaner:
    queue = services.sandbox_queue
    return SandboxCleaner(settings or services.settings, queue.store, queue.pauses, queue.snapshots)


async def test_records_go_after_their_period_and_running_ones_stay(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        services = api.services
        store = services.sandbox_queue.store
        made = [await store.insert(new_sandbox(labels={"n": str(number)})) for number in range(130)]
        for each in made[:-2]:
            await store.request_end(None, each.id, EndReason.DELETED, "it was deleted")
        old = datetime.now(UTC) - timedelta(days=8)
        ended = [each.id for each in made[:-3]]
        query = sandboxes.update().where(sandboxes.c.id.in_(ended)).values(ended_at=old)
        await services.database.writing(lambda connection: connection.execute(query))
        cleaner = cleaner_of(services)
        record = ServiceRecord(
            service="sandboxes",
            first_run_at=old,
            last_run_at=old,
            last_success_at=None,
            removed_count=0,
            removed_bytes=0,
            failures=0,
            error=None,
            done_until=None,
        )
        assert (await cleaner.run(record, dry_run=True)).removed.count == len(ended)
        assert (await cleaner.run(record, dry_run=False)).removed.count == len(ended)
        assert (await cleaner.run(record, dry_run=False)).removed.count == 0
        left, _ = await store.list(None, limit=500)
        assert {each.id for each in left} == {each.id for each in made[-3:]}
        labels = await services.database.reading(lambda connection: connection.execute(sandbox_labels.select()).all())
        assert len(labels) == 3
        forever = services.settings.model_copy(update={"keep_ended_sandboxes_days": 0})
        assert (await cleaner_of(services, forever).run(record, dry_run=False)).removed.count == 0
