"""Seals, and an index by which what has not ended long ago is found.

Revision ID: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
phase = "expand"

_SEALS = """
CREATE TABLE seals (
    seq bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    chain integer NOT NULL,
    batch bigint NOT NULL,
    seal bigint NOT NULL,
    part bigint NOT NULL,
    parts bigint NOT NULL,
    at_us bigint NOT NULL,
    body bytea NOT NULL,
    mac bytea NOT NULL,
    digest bytea NOT NULL,
    PRIMARY KEY (seal, part)
)
"""


def upgrade() -> None:
    """Add them."""
    op.execute(_SEALS)
    op.execute(
        "CREATE TRIGGER seals_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON seals "
        "FOR EACH STATEMENT EXECUTE FUNCTION headgate_append_only()"
    )
    op.execute("CREATE INDEX windows_by_end ON windows (end_us)")
