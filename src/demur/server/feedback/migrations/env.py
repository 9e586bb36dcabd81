"""What alembic runs: the migrations, on the connection that the store gives it."""

from alembic import context

from demur.server.feedback.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
