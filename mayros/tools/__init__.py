"""The tools that an agent has: files, commands and what they need. May import core and net."""
