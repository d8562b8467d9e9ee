"""The HTTP door: gate, routes, event streams."""
