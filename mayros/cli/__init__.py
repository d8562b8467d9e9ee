"""The `mayros` command."""
