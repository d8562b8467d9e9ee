"""Which version of the program is installed. Imports nothing of ours."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """The installed version; `dev` where it runs from its tree."""
    try:
        return version("mayros-gateway")
    except PackageNotFoundError:
        return "dev"
