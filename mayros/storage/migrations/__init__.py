"""Alembic's environment for the store. Imported by Alembic only, and Alembic only when the schema is not current."""
