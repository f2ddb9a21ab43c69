"""Alembic's entry: runs migrations on the connection that belljar hands over."""

from alembic import context

from belljar.control.store.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
