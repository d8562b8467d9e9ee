"""mayros.ws.library: Autobahn with its C helpers and without what it can do without (docs/decisions/0009)."""

from __future__ import annotations

import json
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

_LOOK = """
import json, sys
import mayros.ws.library
absent = [name for name in ("cbor2", "click", "cffi", "pycparser") if name in sys.modules]
from autobahn.websocket.utf8validator import Utf8Validator
from autobahn.websocket.xormasker import create_xor_masker
check = Utf8Validator()
check.reset()
said = [check.validate("n\\u00e4ive".encode())[:2], check.validate(b"\\xff")[0]]
masked = create_xor_masker(b"abcd", 300).process(b"hello")
import click, cffi
print(json.dumps([absent, Utf8Validator.__module__, said, masked.hex(), hasattr(cffi.FFI, "cdef"), hasattr(click, "command")]))
"""


class LibraryTests(SynchronousTestCase):
    """In a process of its own, where nothing else was imported before."""

    def test_what_is_loaded_and_what_works(self) -> None:
        """The compiled helpers work without their builder; whoever imports what was kept away gets it afterwards, whole."""
        done = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, timeout=60, check=True)
        absent, helper, said, masked, cffi, click = json.loads(done.stdout)
        self.assertEqual(absent, [])
        self.assertIn("nvx", helper)
        self.assertEqual(said, [[True, True], False])
        self.assertEqual(masked, bytes(a ^ b for a, b in zip(b"hello", b"abcda", strict=True)).hex())
        self.assertEqual((cffi, click), (True, True))
