"""What each part may import; see docs/architecture.md. Checked on the source, so it holds for lazy imports too."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import mayros
from tests.sources import imports, tree

PACKAGE = Path(mayros.__file__).parent
#: Errors, events and messages may be imported by all.
COMMON = {"errors", "events", "messages"}
ALLOWED = {
    "errors": set(),
    "events": set(),
    "messages": set(),
    "net": set(),
    "wire": set(),
    "config": {"net"},
    "core": {"config", "net.redact"},
    "providers": {"core", "wire", "net"},
    "storage": {"core", "config", "net"},
    "tools": {"core", "net"},
    "web": {"core", "wire", "config"},
    "ws": {"core", "wire", "config"},
    "ops": {"core", "config", "net", "storage"},
    "runtime": {"config", "core", "net", "ops", "providers", "storage", "tools"},
    "doors": {"core", "config", "wire", "web", "ws"},
    "seeing": {"config", "core", "doors", "measure", "ops", "runtime", "web", "ws"},
    "measure": {"ops", "seeing"},
    "inforce": {"doors", "runtime", "config", "core", "net", "ops"},
    "stopping": {"core"},
    "service": {"doors", "inforce", "runtime", "seeing", "stopping", "config", "core", "net", "ops", "providers", "storage", "tools", "web", "ws"},
    "tap": {"service", "config", "core", "net", "ops"},
    "cli": {
        *("runtime", "service", "stopping", "tap", "config", "core", "net", "ops", "providers", "storage"),
        *("ws.client", "ws.connection", "ws.conversation", "ws.identity"),
    },
}
#: What one module may import beyond its part: the client keeps its key in files and connects by itself, the daemon's side of ws does neither.
BEYOND = {
    "ws/identity.py": {"net.files"},
    "ws/urls.py": {"net.certificates", "net.pinned"},
    "ws/client.py": {"net.certificates"},
    "web/request.py": {"net.sending"},
}
#: What the domain may use of Twisted: values and waiting, no reactor, no web. The logger is for saying, not for doing.
CORE_TWISTED = {"twisted.internet.defer", "twisted.internet.task", "twisted.internet.interfaces", "twisted.logger", "twisted.python.failure"}
FORBIDDEN_IN_CORE = {"klein", "autobahn", "sqlalchemy", "treq"}


def modules() -> list[tuple[str, Path]]:
    """Each module with its part of the table."""
    return [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in sorted(PACKAGE.rglob("*.py"))]


class LayeringTests(SynchronousTestCase):
    """The table above."""

    def test_parts_import_only_what_is_below_them(self) -> None:
        """No part knows one that is above it or beside it."""
        for part, path in modules():
            if part == "__init__":
                continue
            for name in imports(path):
                if not name.startswith("mayros."):
                    continue
                inside = name.removeprefix("mayros.")
                other = inside.partition(".")[0]
                allowed = ALLOWED[part] | BEYOND.get(str(path.relative_to(PACKAGE)), set())
                fine = other == part or other in COMMON or any(inside == may or inside.startswith(may + ".") for may in allowed)
                self.assertTrue(fine, f"{path.relative_to(PACKAGE)} imports {name}")

    def test_the_domain_does_no_input_or_output(self) -> None:
        """core knows of Twisted only how to wait, and of the web and the database nothing."""
        for part, path in modules():
            if part != "core":
                continue
            for name in imports(path):
                where = f"{path.relative_to(PACKAGE)} imports {name}"
                if name.startswith("twisted."):
                    self.assertTrue(any(name.startswith(may) for may in CORE_TWISTED), where)
                self.assertNotIn(name.partition(".")[0], FORBIDDEN_IN_CORE, where)

    def test_the_global_reactor_is_touched_at_the_edge_only(self) -> None:
        """Everything but tap and the command line is given its reactor."""
        for part, path in modules():
            if part in ("tap", "cli"):
                continue
            self.assertNotIn("twisted.internet.reactor", imports(path), path)

    def test_autobahn_stays_in_one_module(self) -> None:
        """The WebSocket library can be replaced without touching the conversation."""
        users = {str(path.relative_to(PACKAGE)) for _, path in modules() if any(name.startswith("autobahn") for name in imports(path))}
        self.assertLessEqual(users, {"ws/library.py"})

    def test_packages_hold_only_a_docstring(self) -> None:
        """Names are imported from where they are made."""
        for _, path in modules():
            if path.name == "__init__.py":
                body = tree(path).body
                self.assertTrue(all(isinstance(node, ast.Expr) for node in body), path)
