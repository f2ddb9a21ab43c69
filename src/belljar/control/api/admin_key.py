"""Creates the first key when a data folder is first served, in a file that only its owner may read.

The command line reads it there, so that it needs no other key on the same machine.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from belljar.control.audit.entry import SYSTEM
from belljar.control.audit.operation import OwnOperation, carrying_out
from belljar.control.projects.identity import DEFAULT_PROJECT
from belljar.control.projects.key_format import new_secret
from belljar.control.projects.keys import Key
from belljar.control.projects.scopes import Scope
from belljar.control.store.keys import SqlKeys
from belljar.data_dir import DataDir, private_file
from belljar.local_server import read_admin_key
from belljar.model.errors import DataFolderError
from belljar.model.ids import new_id
from belljar.system.atomic_write import atomic_path


async def ensure_admin_key(keys: SqlKeys, data_dir: Path) -> bool:
    """Create the admin key unless there is a valid one. Return whether it was created. Raises DataFolderError.

    After the file was deleted, or its key revoked, there is a new one.
    """
    known = read_admin_key(data_dir)
    if known is not None and await keys.authenticate(known) is not None:
        return False
    secret = new_secret()
    path = DataDir(data_dir).admin_key
    partial = path.with_suffix(".partial")
    try:
        partial.unlink(missing_ok=True)  # of a crash: the secret in it may be a valid key's
        with atomic_path(path, temporary=partial) as part:
            private_file(part)
            part.write_text(secret + "\n")
            # The record first, then the file: a crash in between leaves a key whose secret is lost.
            key = Key(
                id=new_id("key"),
                name="admin",
                project=DEFAULT_PROJECT,
                extra_scopes=frozenset({Scope.ADMIN}),
                created_at=datetime.now(UTC),
            )
            with carrying_out(OwnOperation(SYSTEM)):
                await keys.add(key, secret)
    except OSError as error:
        raise DataFolderError(f"cannot write {path}: {error.strerror}; set --data-dir to another folder") from error
    return True
