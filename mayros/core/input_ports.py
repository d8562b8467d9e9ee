"""Ports of what a request brings besides text: images at other addresses, and PDF files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class Fetched(Protocol):
    """What an address gave. `kind` is the media type of its answer, in lower case and without parameters."""

    @property
    def kind(self) -> str: ...

    @property
    def data(self) -> bytes: ...


class Fetch(Protocol):
    """Gets what a public address of somebody else's choice gives, by one GET without credentials."""

    async def __call__(
        self, url: str, *, hosts: Sequence[str], kinds: Sequence[str], redirects: int, seconds: float, take: Callable[[int], None]
    ) -> Fetched:
        """Fetch. `hosts`: the only ones that are asked (`*.` and a domain: all below it), or none for any; `kinds`: the media types that are read.

        `take` is called before bytes are read or kept, with their count; what it raises ends the fetch. Cancelling closes the socket. Raises
        InputFailed.
        """
        ...


class PdfText(Protocol):
    """The text of a PDF's first pages. `pages`: of the file; `read`: how many of them are in the text; `cut`: the text ended at its limit."""

    @property
    def text(self) -> str: ...

    @property
    def pages(self) -> int: ...

    @property
    def read(self) -> int: ...

    @property
    def cut(self) -> bool: ...


class PdfReader(Protocol):
    """Reads PDF files, which may be made to harm whoever reads them."""

    async def __call__(self, data: bytes, *, max_pages: int, max_chars: int) -> PdfText:
        """The text. Cancelling ends the reading at once. Raises InputFailed."""
        ...
