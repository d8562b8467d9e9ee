"""Which models there are: built-in entries, the configuration over them, keys from the environment."""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import AuthProfile, Cost, ModelAuth, ModelDefinition, Models, ProviderEntry, Timeouts
from mayros.config.section import Milliseconds
from mayros.core.models import EMBEDDED, Catalogue, Credential, Limits, Model


def catalogue(environ: dict[str, str] | None = None, models: Models | None = None, **providers: ProviderEntry) -> Catalogue:
    """A catalogue of these providers."""
    return Catalogue(models or Models(providers=providers), environ or {})


class CatalogueTests(SynchronousTestCase):
    """Looking up `provider/model`."""

    def find(self, book: Catalogue, ref: str) -> Model:
        """A model that must be there."""
        model = book.find(ref)
        assert model is not None, ref
        self.assertEqual(model.ref, ref)
        return model

    def test_the_embedded_model_is_built_in(self) -> None:
        """Without any configuration: its window, no tools, one request at a time, long patience for the first byte."""
        model = self.find(catalogue(), EMBEDDED)
        self.assertEqual(EMBEDDED, "local/smollm2-135m-instruct")
        self.assertEqual((model.context_window, model.tools, model.input), (8192, False, ("text",)))
        self.assertEqual((model.provider.api, model.provider.max_connections), ("local", 1))
        self.assertEqual(model.provider.limits, Limits(connect=10, first_byte=300, idle=60))

    def test_keys_come_from_the_file_or_the_environment(self) -> None:
        """The file wins; a blank one does not count; each provider has its own variable."""
        book = catalogue(
            {"OPENAI_API_KEY": "sk-env", "MY_OWN_API_KEY": "k2", "A_B_C_API_KEY": "k3", "GROQ_API_KEY": ""},
            **{
                "openrouter": ProviderEntry(api_key="sk-file"),
                "my-own": ProviderEntry(base_url="https://x.example/v1", api_key=""),
                "a.b-c": ProviderEntry(base_url="https://y.example/v1"),
            },
        )
        keys = {name: book.providers[name].key for name in ("openai", "openrouter", "my-own", "a.b-c", "groq", "ollama")}
        self.assertEqual(keys, {"openai": "sk-env", "openrouter": "sk-file", "my-own": "k2", "a.b-c": "k3", "groq": None, "ollama": None})
        self.assertEqual(catalogue({"OPENAI_API_KEY": "sk-env"}, openai=ProviderEntry(api_key="sk-file")).providers["openai"].key, "sk-file")

    def test_keys_are_not_shown(self) -> None:
        """Not by a provider, a model, or the configuration it came from."""
        entry = ProviderEntry(api_key="sk-secret", headers={"X-Key": "sk-secret"}, models=(ModelDefinition(id="m"),), base_url="https://x.example")
        model = self.find(catalogue(x=entry), "x/m")
        for text in (repr(model), repr(model.provider), repr(entry), repr(Models(providers={"x": entry}))):
            self.assertNotIn("sk-secret", text)

    def test_a_provider_of_ones_own(self) -> None:
        """Everything as configured, a final slash of the base URL gone."""
        definition = ModelDefinition(id="big/one", name="Big One", context_window=1000, max_tokens=50, input=("text", "image"), reasoning=True)
        book = catalogue(
            mine=ProviderEntry(base_url="http://10.0.0.5:8000/v1/", models=(definition,), headers={"x-a": "b"}, max_connections=7, ca_path="/ca.pem")
        )
        model = self.find(book, "mine/big/one")
        self.assertEqual((model.id, model.name, model.context_window, model.max_tokens), ("big/one", "Big One", 1000, 50))
        self.assertEqual((model.input, model.reasoning, model.tools), (("text", "image"), True, True))
        provider = model.provider
        self.assertEqual((provider.base_url, provider.headers, provider.max_connections), ("http://10.0.0.5:8000/v1", {"x-a": "b"}, 7))
        self.assertEqual((provider.api, provider.ca_path, provider.limits), ("openai-completions", "/ca.pem", Limits(10, 60, 60)))

    def test_merging_with_a_built_in_provider(self) -> None:
        """What the file leaves out is the built-in's; the file's models come in front and replace those of the same id."""
        own = ModelDefinition(id="smollm2-135m-instruct", context_window=4096)
        book = catalogue(openai=ProviderEntry(models=(ModelDefinition(id="gpt-x", context_window=9),)), local=ProviderEntry(models=(own,)))
        self.assertEqual(book.providers["openai"].base_url, "https://api.openai.com/v1")
        self.assertEqual(self.find(book, "openai/gpt-x").context_window, 9)
        self.assertEqual(self.find(book, EMBEDDED).context_window, 4096)
        self.assertEqual(book.providers["local"].api, "local")
        added = catalogue(local=ProviderEntry(models=(ModelDefinition(id="other"),)))
        self.assertEqual([ref for ref in added.models if ref.startswith("local/")], ["local/other", EMBEDDED])

    def test_replacing_the_built_in_list(self) -> None:
        """`models.mode: replace` leaves only what the file has."""
        book = catalogue(models=Models(mode="replace", providers={"mine": ProviderEntry(base_url="http://x", models=(ModelDefinition(id="m"),))}))
        self.assertEqual(list(book.providers), ["mine"])
        self.assertEqual(list(book.models), ["mine/m"])
        self.assertIsNone(book.find(EMBEDDED))
        self.assertIsNone(book.find("openai/gpt-x"))

    def test_models_that_are_not_listed(self) -> None:
        """A known vendor's model is taken on trust, for vendors add models daily; a local one cannot be, nor one of a provider nobody knows."""
        book = catalogue()
        model = self.find(book, "openrouter/meta/llama-x")
        self.assertEqual((model.provider.id, model.id), ("openrouter", "meta/llama-x"))
        self.assertNotIn("openrouter/meta/llama-x", book.models)
        for ref in ("local/other", "nowhere/x", "openai/", "openai", "", "/", "/x"):
            self.assertIsNone(book.find(ref), ref)

    def test_time_limits(self) -> None:
        """A provider's own, else `models.timeouts`, else the defaults; the embedded model's first byte follows its own setting only."""
        wide = Timeouts(connect_ms=Milliseconds(1000), first_byte_ms=Milliseconds(2000))
        mine = ProviderEntry(base_url="http://x", timeouts=Timeouts(first_byte_ms=Milliseconds(500), idle_ms=Milliseconds(250)))
        book = catalogue(models=Models(providers={"mine": mine}, timeouts=wide))
        self.assertEqual(book.providers["mine"].limits, Limits(connect=1, first_byte=0.5, idle=0.25))
        self.assertEqual(book.providers["openai"].limits, Limits(connect=1, first_byte=2, idle=60))
        self.assertEqual(book.providers["local"].limits.first_byte, 300)
        own = catalogue(local=ProviderEntry(timeouts=Timeouts(first_byte_ms=Milliseconds(9000))))
        self.assertEqual(own.providers["local"].limits.first_byte, 9)

    def test_what_is_known_of_vendors_models(self) -> None:
        """Windows, prices and what they take; a fixed version is like the model it is one of; any other is taken on trust."""
        book = catalogue()
        model = self.find(book, "anthropic/claude-haiku-4-5")
        self.assertEqual((model.context_window, model.max_tokens, model.reasoning, model.input), (200_000, 64_000, True, ("text", "image")))
        self.assertEqual(model.cost, Cost(input=1, output=5, cache_read=0.1, cache_write=1.25))
        free = [ref for ref, one in book.models.items() if one.cost.input and not (one.cost.cache_read and one.cost.cache_write)]
        self.assertEqual(free, [], "tokens of the cache cost what input costs, where there is no price of their own")
        fixed = self.find(book, "anthropic/claude-haiku-4-5-20251001")
        self.assertEqual((fixed.cost, fixed.name), (model.cost, "claude-haiku-4-5-20251001"))
        self.assertEqual(self.find(book, "openai/gpt-5-mini-2025-08-07").max_tokens, 128_000)
        self.assertEqual(self.find(book, "openai/gpt-5-unheard").cost, Cost())
        own = ModelDefinition(id="claude-haiku-4-5", context_window=9)
        self.assertEqual(self.find(catalogue(anthropic=ProviderEntry(models=(own,))), "anthropic/claude-haiku-4-5").cost, Cost())

    def test_wire_formats(self) -> None:
        """A vendor speaks its own; who gives OpenAI's another address has an imitator; what the file says wins."""

        def api(name: str, entry: ProviderEntry) -> str:
            return catalogue(**{name: entry}).providers[name].api

        elsewhere = "http://127.0.0.1:9/v1"
        self.assertEqual(api("anthropic", ProviderEntry()), "anthropic-messages")
        self.assertEqual(api("anthropic", ProviderEntry(base_url=elsewhere)), "anthropic-messages")
        self.assertEqual(api("google", ProviderEntry()), "google-generative-ai")
        self.assertEqual(api("openai", ProviderEntry()), "openai-responses")
        self.assertEqual(api("openai", ProviderEntry(api="openai-completions")), "openai-completions")
        self.assertEqual(api("openai", ProviderEntry(base_url=elsewhere)), "openai-completions")
        self.assertEqual(api("openai", ProviderEntry(base_url=elsewhere, api="openai-responses")), "openai-responses")
        self.assertEqual(api("mine", ProviderEntry(base_url=elsewhere)), "openai-completions")


class KeyTests(SynchronousTestCase):
    """Several keys for one provider."""

    AUTH = ModelAuth(
        profiles={
            "one": AuthProfile(provider="openai", key="k-one-0001"),
            "two": AuthProfile(provider="openai", key="k-two-0002"),
            "x": AuthProfile(provider="anthropic", key="k-x-0003"),
        }
    )
    KEYS: ClassVar = {"one": "k-one-0001", "two": "k-two-0002", "x": "k-x-0003"}

    def ids(self, auth: ModelAuth, environ: dict[str, str], **providers: ProviderEntry) -> tuple[list[str], bool]:
        """The keys of `openai` in their order, and whether the file says that order."""
        provider = Catalogue(Models(providers=providers), environ, auth, self.KEYS).providers["openai"]
        self.assertEqual(provider.key, provider.credentials[0].key if provider.credentials else None)
        return [one.id for one in provider.credentials], provider.ordered

    def test_order(self) -> None:
        """Profiles first, then the provider's own key, else that of the environment; `auth.order` chooses among the profiles."""
        environ = {"OPENAI_API_KEY": "k-env-0004"}
        self.assertEqual(self.ids(self.AUTH, environ), (["profile:one", "profile:two", "env:OPENAI_API_KEY"], False))
        self.assertEqual(self.ids(self.AUTH, environ, openai=ProviderEntry(api_key="k-own")), (["profile:one", "profile:two", "config"], False))
        ordered = structs.replace(self.AUTH, order={"openai": ("two", "one")})
        self.assertEqual(self.ids(ordered, {}), (["profile:two", "profile:one"], True))
        self.assertEqual(self.ids(ordered, {"OPENAI_API_KEY": "k-one-0001"}), (["profile:two", "profile:one"], True), "each key once")
        self.assertEqual(self.ids(ModelAuth(), {}), ([], False))

    def test_a_credential_does_not_show_its_key(self) -> None:
        """Its id is for logs."""
        self.assertEqual(repr(Credential("profile:one", "k-secret")), "<Credential profile:one>")
