"""Which models there are: built-in entries, the configuration over them, keys from the environment."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import Milliseconds, ModelDefinition, Models, ProviderEntry, Timeouts
from mayros.core.models import EMBEDDED, Catalogue, Limits, Model


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
        self.assertEqual(list(added.models), ["local/other", EMBEDDED])

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
