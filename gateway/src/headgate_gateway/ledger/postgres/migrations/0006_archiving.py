"""Triggers let go of rows that are noted in `archives`, and of nothing else.

Audits of programs of before want triggers that let nothing go, so this waits until all nodes are new.

Revision ID: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
phase = "contract"

_FUNCTION = """
CREATE FUNCTION headgate_archived_only() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE number bigint;
BEGIN
    IF TG_TABLE_NAME = 'links' THEN number := OLD.number; ELSE number := OLD.batch; END IF;
    IF number > (SELECT coalesce(max(until), 0) FROM archives WHERE covers = OLD.chain) THEN
        RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN OLD;
END $$
"""


def upgrade() -> None:
    """Let what was archived go."""
    op.execute(_FUNCTION)
    for table in ("usage_records", "voids", "audit_log", "seals", "links"):
        op.execute(f"DROP TRIGGER {table}_append_only ON {table}")
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION headgate_append_only()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_archived_only BEFORE DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION headgate_archived_only()"
        )
