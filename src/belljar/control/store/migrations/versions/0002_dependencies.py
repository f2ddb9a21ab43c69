"""What packages a script asks for."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("scripts", sa.Column("dependencies", sa.JSON))
