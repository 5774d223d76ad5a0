"""Revisions of the schema on PostgreSQL. Each says its `phase`: expand or contract."""
