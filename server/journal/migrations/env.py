"""Runs migrations on the connection that `server.journal.database` gives."""

from alembic import context

from server.journal.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
