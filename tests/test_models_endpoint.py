"""GET /v1/models and /v1/models/{id}: the agents, as OpenAI lists models."""

from __future__ import annotations

from typing import Any

from mayros.core.ports import Principal
from mayros.web.models import listed
from tests.helpers import Answer, Harness, HarnessCase, head, settings


class ModelsTests(HarnessCase):
    """The list, and each of its entries."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway({"agents": {"list": [{"id": "main", "identity": {"name": "Robin"}}, {"id": "beta"}]}})

    def get(self, path: str = "/v1/models", method: str = "GET", gateway: Harness | None = None, **how: Any) -> Answer:
        """Ask."""
        return (gateway or self.one).dial(head(method, path, **how) + b"\r\n").answer()

    def test_the_list(self) -> None:
        """The default agent under two general names, then each agent; the time is that of the configuration; people see a name."""
        answer = self.get()
        self.assertEqual((answer.status, answer.headers["content-type"], answer.headers["cache-control"]), (200, "application/json", "no-store"))
        self.assertEqual(answer.json["object"], "list")
        common = {"object": "model", "created": 1, "owned_by": "mayros"}
        self.assertEqual(
            answer.json["data"],
            [
                {"id": "mayros", "name": "Robin", **common},
                {"id": "mayros/default", "name": "Robin", **common},
                {"id": "mayros/main", "name": "Robin", **common},
                {"id": "mayros/beta", "name": "beta", **common},
            ],
        )

    def test_providers_models_are_not_listed(self) -> None:
        """A client chooses an agent; which model that asks is the operator's business."""
        self.assertNotIn(b"fake", self.get().body)

    def test_one(self) -> None:
        """With its slash as it is or encoded, in any case, with and without /v1, with one final slash."""
        wanted = self.get().json["data"][3]
        for name in ("mayros/beta", "mayros%2Fbeta", "mayros%2fbeta", "MAYROS/Beta", "mayros/beta/", "%6dayros/beta", "mayros/beta?x=1"):
            for base in ("/v1/models/", "/models/"):
                answer = self.get(base + name)
                self.assertEqual((answer.status, answer.json), (200, wanted), base + name)
        self.assertEqual(self.get("/v1/models/mayros").json["id"], "mayros")

    def test_every_listed_model_answers(self) -> None:
        """What is listed can be retrieved, and asked."""
        for entry in self.get().json["data"]:
            self.assertEqual(self.get(f"/v1/models/{entry['id']}").json, entry)
            self.assertEqual(self.one.serve(text="ok", model=entry["id"]).json["model"], entry["id"])

    def test_unknown(self) -> None:
        """404 with the code that clients look for; the list itself is another address; nothing sent gets into a header."""
        for name in ("nobody", "mayros/nobody", "gpt-4o", "fake/one", "%ff", "mayros%0d%0ax", "..%2f..%2fetc", "main", "mayros//main", "x" * 4_000):
            answer = self.get(f"/v1/models/{name}")
            error = answer.error
            self.assertEqual(
                (answer.status, error["type"], error["code"], error["param"]), (404, "invalid_request_error", "model_not_found", "model"), name
            )
            self.assertLess(len(answer.body), 400)
        self.assertEqual(self.get("/v1/models//").error["code"], "unknown_url")

    def test_spellings_of_the_list(self) -> None:
        """One final slash, and the address without /v1."""
        for path in ("/v1/models/", "/models", "/models/"):
            self.assertEqual(self.get(path).body, self.get().body)

    def test_methods(self) -> None:
        """GET, HEAD with the same head and no body, OPTIONS; nothing else."""
        for path in ("/v1/models", "/v1/models/mayros"):
            whole = self.get(path)
            client = self.one.dial(head("HEAD", path) + b"\r\n")
            self.assertTrue(client.received.endswith(b"\r\n\r\n"))
            self.assertIn(b"\r\nContent-Length: %d\r\n" % len(whole.body), client.received)
            for method in ("POST", "DELETE"):
                refused = self.get(path, method)
                self.assertEqual((refused.status, refused.headers["allow"]), (405, "GET, HEAD, OPTIONS"))
            self.assertEqual(self.get(path, "OPTIONS", token=None).headers["allow"], "GET, HEAD, OPTIONS")

    def test_a_credential_is_needed(self) -> None:
        """As for the chat endpoint; who has none does not learn which agents there are."""
        for path in ("/v1/models", "/v1/models/mayros/main", "/v1/models/nobody"):
            for token in (None, "wrong"):
                self.assertEqual(self.get(path, token=token).status, 401)

    def test_the_switch(self) -> None:
        """On as soon as one of the endpoints is that runs agents."""

        def status(**enabled: bool) -> int:
            endpoints = {name: {"enabled": on} for name, on in enabled.items()}
            return self.get(gateway=self.gateway({"gateway": {"http": {"endpoints": endpoints}}})).status

        self.assertEqual(status(chatCompletions=False), 404)
        self.assertEqual((status(chatCompletions=True), status(chatCompletions=False, responses=True)), (200, 200))

    def test_an_agent_named_default(self) -> None:
        """`mayros/default` is that agent, and is listed once."""
        one = self.gateway({"agents": {"list": [{"id": "main"}, {"id": "default", "name": "D"}]}})
        names = [(entry["id"], entry["name"]) for entry in self.get(gateway=one).json["data"]]
        self.assertEqual(names, [("mayros", "main"), ("mayros/default", "D"), ("mayros/main", "main")])

    def test_a_caller_who_may_use_some_agents(self) -> None:
        """Sees those only."""
        some = Principal("token:x", frozenset(("operator.write",)), agents=frozenset(("beta",)))
        self.assertEqual(list(listed(settings(), some)), ["mayros/beta"])
