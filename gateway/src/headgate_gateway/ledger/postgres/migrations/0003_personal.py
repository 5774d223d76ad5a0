"""A table beside the history for what may name people, whose rows can be deleted but never changed.

Programs of before go on with it: what they pack has no hash, and they pass over the one that others pack.

Revision ID: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
phase = "expand"

_PERSONAL = """
CREATE TABLE personal (
    at_us bigint NOT NULL,
    request_id text NOT NULL,
    project text NOT NULL,
    salt bytea NOT NULL,
    fields bytea NOT NULL,
    PRIMARY KEY (at_us, request_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 0)
"""


def upgrade() -> None:
    """Add it; each erasure makes the vacuum come. Records of before keep their tags: history is not rewritten."""
    op.execute(_PERSONAL)
    op.execute(
        "CREATE TRIGGER personal_append_only BEFORE UPDATE OR TRUNCATE ON personal "
        "FOR EACH STATEMENT EXECUTE FUNCTION headgate_append_only()"
    )
