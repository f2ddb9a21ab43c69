"""Rename the JSON columns of jobs to `spec` and `result`, and the field `never` of refused destinations."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

# Rows of jobs without refused destinations, nearly all, are read and not written.
_RENAME_FIELD = """
UPDATE jobs SET result = json_set(result, '$.network.refused', (
    SELECT json_group_array(json(CASE
        WHEN json_type(each.value, '$.never') IS NULL THEN each.value
        ELSE json_remove(json_set(each.value, '$.always_blocked',
            json(CASE json_extract(each.value, '$.never') WHEN 1 THEN 'true' ELSE 'false' END)), '$.never')
    END)) FROM json_each(jobs.result, '$.network.refused') AS each))
WHERE instr(result, '"never"') > 0 AND json_type(result, '$.network.refused') = 'array'
"""


def upgrade() -> None:
    # Both are changes of the table's definition alone, whatever the number of jobs.
    op.alter_column("jobs", "asked", new_column_name="spec")
    op.alter_column("jobs", "found", new_column_name="result")
    op.execute(sa.text(_RENAME_FIELD))
