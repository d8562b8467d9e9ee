"""The configuration file: its schema, how it is read and how it is written. Imports `net` and `errors` only."""
