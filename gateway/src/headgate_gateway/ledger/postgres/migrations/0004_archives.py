"""What left the database for files of the archive; nothing may leave before the next revision.

Revision ID: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
phase = "expand"

_ARCHIVES = """
CREATE TABLE archives (
    seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    chain integer NOT NULL,
    batch bigint NOT NULL,
    seal bigint NOT NULL,
    covers integer NOT NULL,
    until bigint NOT NULL,
    until_us bigint NOT NULL,
    file text NOT NULL,
    hash bytea NOT NULL,
    size bigint NOT NULL,
    row_count bigint NOT NULL,
    at_us bigint NOT NULL,
    digest bytea NOT NULL,
    PRIMARY KEY (seal, covers)
)
"""


def upgrade() -> None:
    """Add the table."""
    op.execute(_ARCHIVES)
    op.execute("CREATE INDEX archives_by_chain ON archives (covers, until)")
    op.execute(
        "CREATE TRIGGER archives_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON archives "
        "FOR EACH STATEMENT EXECUTE FUNCTION headgate_append_only()"
    )
