"""Operating the daemon: logs, health, signals."""
