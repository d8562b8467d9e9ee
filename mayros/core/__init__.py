"""The domain: the agent run and what it needs. No reactor, no web, no database (see docs/architecture.md)."""
