"""I/O basics that know nothing of agents: HTTP client, files, state directory, child processes."""
