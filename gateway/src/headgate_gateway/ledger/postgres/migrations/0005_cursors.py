"""How far consumers of usage records have come.

Revision ID: 0005
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    """Add the table; consumers begin with what is recorded from now on."""
    op.execute(
        "CREATE TABLE cursors (consumer text PRIMARY KEY, position bigint NOT NULL, epoch bigint NOT NULL, "
        "error text NOT NULL) WITH (fillfactor = 50)"
    )
