"""A table beside the history for what may name people, whose rows can be emptied but not changed.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add it. Records of before keep their tags: history is not rewritten."""
    op.create_table(
        "personal",
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("project", sa.Text, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("fields", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("at_us", "request_id"),
    )
    op.execute(
        "CREATE TRIGGER personal_no_update BEFORE UPDATE ON personal WHEN NEW.at_us <> OLD.at_us "
        "OR NEW.request_id <> OLD.request_id OR NEW.project <> OLD.project OR NEW.salt <> zeroblob(16) "
        "OR NEW.fields <> zeroblob(length(OLD.fields)) "
        "BEGIN SELECT RAISE(ABORT, 'personal is never changed'); END"
    )
