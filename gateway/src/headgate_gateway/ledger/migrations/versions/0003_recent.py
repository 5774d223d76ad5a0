"""A ring of what the last batches changed, so that a commit writes few pages.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add an empty ring: what was committed before is in the tables already."""
    op.create_table(
        "recent",
        sa.Column("slot", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("changes", sa.LargeBinary, nullable=False),
    )
