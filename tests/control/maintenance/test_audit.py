"""Retention of the audit log: rows leave from the front, and the rest is still verifiable."""

from __future__ import annotations

from belljar.control.audit.entry import SYSTEM, Entry
from belljar.control.audit.heads import Heads
from belljar.control.audit.verify import verify
from belljar.control.store.audit import AuditFilter, SqlAudit
from support.data_folder import Folder


async def test_expired_rows_are_removed_from_the_front_and_the_rest_verifies(folder: Folder) -> None:
    store = SqlAudit(folder.database)
    heads = Heads(folder.path / "audit.heads")
    await store.append([Entry(actor=SYSTEM, action="test.do", object=str(number)) for number in range(300)])
    _, old = await store.ends()
    heads.add(old)
    await store.append([Entry(actor=SYSTEM, action="test.do", object="new")])
    _, new = await store.ends()
    heads.add(new)

    assert (await folder.sweep(dry_run=True))["audit"].result.removed.count == 0
    assert (await folder.sweep(dry_run=True, keep_audit_days=1e-9))["audit"].result.removed.count == 300
    assert (await folder.sweep(keep_audit_days=0))["audit"].result.removed.count == 0
    assert len(await store.page(AuditFilter(), limit=500)) == 301

    assert (await folder.sweep(keep_audit_days=1e-9))["audit"].result.removed.count == 300
    rest = await store.page(AuditFilter(), limit=500)
    assert [(record["seq"], record["action"]) for record in rest] == [(302, "audit.prune"), (301, "test.do")]
    assert rest[0]["details"]["rows"] == 300
    assert [*heads.read()] == [new]
    result = await store.checked(lambda anchor, records: verify(anchor, records, heads.read()))
    assert (result.findings, result.rows, result.anchor) == ([], 2, old)
