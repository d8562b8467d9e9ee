"""The WebSocket door: one client's conversation, and the Autobahn glue."""
