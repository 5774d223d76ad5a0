"""The history of the store's schema, one Alembic revision a module. May import nothing of ours."""
