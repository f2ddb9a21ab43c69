"""Note which process of a worker holds a job: an earlier process of the same worker writes nothing more."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # A change of the table's definition alone, whatever the number of jobs.
    op.add_column("jobs", sa.Column("incarnation", sa.String, nullable=False, server_default=sa.text("''")))
