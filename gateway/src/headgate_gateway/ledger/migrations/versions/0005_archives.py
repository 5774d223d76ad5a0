"""What left the store for files of the archive; triggers let go of what is noted there, and of nothing else.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, and loosen the triggers of what may leave."""
    op.create_table(
        "archives",
        sa.Column("batch", sa.BigInteger, nullable=False),
        sa.Column("seal", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("covers", sa.BigInteger, primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("until", "until_us")),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("size", "row_count", "at_us")),
        sa.Column("digest", sa.LargeBinary, nullable=False),
    )
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER archives_no_{verb.lower()} BEFORE {verb} ON archives "
            "BEGIN SELECT RAISE(ABORT, 'archives is append-only'); END"
        )
    for table in ("usage_records", "voids", "audit_log", "seals", "links"):
        batch = "number" if table == "links" else "batch"
        covered = f"OLD.{batch} > (SELECT coalesce(max(until), 0) FROM archives)"  # noqa: S608 - our own tables
        op.execute(f"DROP TRIGGER {table}_no_delete")
        op.execute(
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} WHEN {covered} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )


def downgrade() -> None:
    """History is not undone: restore the copy that was made before the migration."""
    raise NotImplementedError("restore the copy that was made before the migration")
