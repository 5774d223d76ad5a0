"""Seals, and an index by which what has not ended long ago is found.

Revision ID: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add them."""
    op.create_table(
        "seals",
        sa.Column("batch", sa.BigInteger, nullable=False),
        sa.Column("seal", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("part", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("parts", sa.BigInteger, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.LargeBinary, nullable=False) for name in ("body", "mac", "digest")),
    )
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER seals_no_{verb.lower()} BEFORE {verb} ON seals "
            "BEGIN SELECT RAISE(ABORT, 'seals is append-only'); END"
        )
    op.create_index("windows_by_end", "windows", ["end_us"])


def downgrade() -> None:
    """History is not undone: restore the copy that was made before the migration."""
    raise NotImplementedError("restore the copy that was made before the migration")
