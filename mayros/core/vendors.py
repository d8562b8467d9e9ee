"""The vendors and models that need no configuration but a key. Data; imports config.schema.

Windows, limits and prices (US dollars per million tokens) are what the vendors listed in July 2026, for prompts of usual length: they change, and
an entry of the same id under `models.providers` replaces one of these. What is not listed here is taken on trust, without a price.
"""

from __future__ import annotations

from mayros.config.schema import Cost, ModelDefinition, ProviderApi, ProviderEntry

#: Provider id -> wire format, base URL, and the environment variables of its key, the first that is set counts.
VENDORS: dict[str, tuple[ProviderApi, str, tuple[str, ...]]] = {
    "anthropic": ("anthropic-messages", "https://api.anthropic.com", ("ANTHROPIC_API_KEY",)),
    "openai": ("openai-responses", "https://api.openai.com/v1", ("OPENAI_API_KEY",)),
    "google": ("google-generative-ai", "https://generativelanguage.googleapis.com/v1beta", ("GEMINI_API_KEY", "GOOGLE_API_KEY")),
    "openrouter": ("openai-completions", "https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",)),
    "groq": ("openai-completions", "https://api.groq.com/openai/v1", ("GROQ_API_KEY",)),
    "mistral": ("openai-completions", "https://api.mistral.ai/v1", ("MISTRAL_API_KEY",)),
    "xai": ("openai-completions", "https://api.x.ai/v1", ("XAI_API_KEY",)),
    "deepseek": ("openai-completions", "https://api.deepseek.com/v1", ("DEEPSEEK_API_KEY",)),
    "together": ("openai-completions", "https://api.together.xyz/v1", ("TOGETHER_API_KEY",)),
    "cerebras": ("openai-completions", "https://api.cerebras.ai/v1", ("CEREBRAS_API_KEY",)),
    "moonshot": ("openai-completions", "https://api.moonshot.ai/v1", ("MOONSHOT_API_KEY",)),
    "minimax": ("openai-completions", "https://api.minimax.io/v1", ("MINIMAX_API_KEY",)),
    "nvidia": ("openai-completions", "https://integrate.api.nvidia.com/v1", ("NVIDIA_API_KEY",)),
    "venice": ("openai-completions", "https://api.venice.ai/api/v1", ("VENICE_API_KEY",)),
    "zai": ("openai-completions", "https://api.z.ai/api/paas/v4", ("ZAI_API_KEY", "Z_AI_API_KEY")),
    "huggingface": ("openai-completions", "https://router.huggingface.co/v1", ("HUGGINGFACE_HUB_TOKEN", "HF_TOKEN")),
    "vercel-ai-gateway": ("openai-completions", "https://ai-gateway.vercel.sh/v1", ("AI_GATEWAY_API_KEY",)),
    "ollama": ("openai-completions", "http://127.0.0.1:11434/v1", ("OLLAMA_API_KEY",)),
    "vllm": ("openai-completions", "http://127.0.0.1:8000/v1", ("VLLM_API_KEY",)),
    "llamacpp": ("openai-completions", "http://127.0.0.1:8080/v1", ("LLAMACPP_API_KEY",)),
    "litellm": ("openai-completions", "http://127.0.0.1:4000/v1", ("LITELLM_API_KEY",)),
}

LOCAL = ProviderEntry(
    api="local",
    max_connections=1,
    models=(ModelDefinition(id="smollm2-135m-instruct", name="SmolLM2 135M Instruct", context_window=8192, max_tokens=2048, tools=False),),
)

#: Provider id -> models: id, what it takes and does (`i` images, `r` reasoning), window, most output, and the prices of input, output, cache reads
#: and cache writes. Where a vendor has no price of its own for those from the cache or for the cache (0), they cost what input costs.
_MODELS: dict[str, tuple[tuple[str, str, int, int, float, float, float, float], ...]] = {
    "anthropic": (
        ("claude-opus-4-8", "ir", 1_000_000, 128_000, 5, 25, 0.5, 6.25),
        ("claude-opus-4-7", "ir", 1_000_000, 128_000, 5, 25, 0.5, 6.25),
        ("claude-opus-4-6", "ir", 1_000_000, 128_000, 5, 25, 0.5, 6.25),
        ("claude-opus-4-5", "ir", 200_000, 64_000, 5, 25, 0.5, 6.25),
        ("claude-opus-4-1", "ir", 200_000, 32_000, 15, 75, 1.5, 18.75),
        ("claude-sonnet-4-6", "ir", 1_000_000, 64_000, 3, 15, 0.3, 3.75),
        ("claude-sonnet-4-5", "ir", 200_000, 64_000, 3, 15, 0.3, 3.75),
        ("claude-haiku-4-5", "ir", 200_000, 64_000, 1, 5, 0.1, 1.25),
    ),
    "openai": (
        ("gpt-5.5", "ir", 1_050_000, 128_000, 5, 30, 0.5, 0),
        ("gpt-5.4", "ir", 1_050_000, 128_000, 2.5, 15, 0.25, 0),
        ("gpt-5.4-mini", "ir", 400_000, 128_000, 0.75, 4.5, 0.075, 0),
        ("gpt-5.4-nano", "ir", 400_000, 128_000, 0.2, 1.25, 0.02, 0),
        ("gpt-5.2", "ir", 400_000, 128_000, 1.75, 14, 0.175, 0),
        ("gpt-5.1", "ir", 400_000, 128_000, 1.25, 10, 0.125, 0),
        ("gpt-5", "ir", 400_000, 128_000, 1.25, 10, 0.125, 0),
        ("gpt-5-mini", "ir", 400_000, 128_000, 0.25, 2, 0.025, 0),
        ("gpt-5-nano", "ir", 400_000, 128_000, 0.05, 0.4, 0.005, 0),
        ("o3", "ir", 200_000, 100_000, 2, 8, 0.5, 0),
        ("o4-mini", "ir", 200_000, 100_000, 1.1, 4.4, 0.275, 0),
        ("gpt-4.1", "i", 1_047_576, 32_768, 2, 8, 0.5, 0),
        ("gpt-4.1-mini", "i", 1_047_576, 32_768, 0.4, 1.6, 0.1, 0),
        ("gpt-4o", "i", 128_000, 16_384, 2.5, 10, 1.25, 0),
        ("gpt-4o-mini", "i", 128_000, 16_384, 0.15, 0.6, 0.075, 0),
    ),
    "google": (
        ("gemini-3.6-flash", "ir", 1_048_576, 65_536, 1.5, 7.5, 0.15, 0),
        ("gemini-3.5-flash", "ir", 1_048_576, 65_536, 1.5, 9, 0.15, 0),
        ("gemini-3.1-pro-preview", "ir", 1_048_576, 65_536, 2, 12, 0.2, 0),
        ("gemini-3.1-flash-lite", "ir", 1_048_576, 65_536, 0.25, 1.5, 0.025, 0),
        ("gemini-3-flash-preview", "ir", 1_048_576, 65_536, 0.5, 3, 0.05, 0),
        ("gemini-2.5-pro", "ir", 1_048_576, 65_536, 1.25, 10, 0.125, 0),
        ("gemini-2.5-flash", "ir", 1_048_576, 65_536, 0.3, 2.5, 0.03, 0),
        ("gemini-2.5-flash-lite", "ir", 1_048_576, 65_536, 0.1, 0.4, 0.01, 0),
    ),
    "xai": (
        ("grok-4.5", "ir", 500_000, 64_000, 2, 6, 0.5, 0),
        ("grok-4.3", "ir", 1_000_000, 64_000, 1.25, 2.5, 0.2, 0),
        ("grok-4-fast", "ir", 2_000_000, 30_000, 0.2, 0.5, 0.05, 0),
    ),
    "mistral": (
        ("mistral-large-latest", "i", 262_144, 32_768, 0.5, 1.5, 0, 0),
        ("mistral-medium-latest", "i", 128_000, 16_384, 0.4, 2, 0, 0),
        ("mistral-small-latest", "i", 128_000, 16_384, 0.1, 0.3, 0, 0),
        ("magistral-medium-latest", "r", 128_000, 16_384, 2, 5, 0, 0),
        ("devstral-medium-latest", "", 262_144, 32_768, 0.4, 2, 0, 0),
        ("codestral-latest", "", 256_000, 16_384, 0.3, 0.9, 0, 0),
    ),
    "groq": (
        ("openai/gpt-oss-120b", "r", 131_072, 65_536, 0.15, 0.6, 0, 0),
        ("openai/gpt-oss-20b", "r", 131_072, 65_536, 0.075, 0.3, 0, 0),
        ("llama-3.3-70b-versatile", "", 131_072, 32_768, 0.59, 0.79, 0, 0),
        ("llama-3.1-8b-instant", "", 131_072, 131_072, 0.05, 0.08, 0, 0),
    ),
    "cerebras": (("gpt-oss-120b", "r", 131_072, 32_768, 0.25, 0.69, 0, 0),),
    "deepseek": (
        ("deepseek-chat", "", 131_072, 8_192, 0.28, 0.42, 0.028, 0),
        ("deepseek-reasoner", "r", 131_072, 65_536, 0.28, 0.42, 0.028, 0),
    ),
}


def built_in() -> dict[str, ProviderEntry]:
    """All entries by provider id."""
    entries = {"local": LOCAL}
    for name, (api, url, _) in VENDORS.items():
        models = tuple([_definition(*row) for row in _MODELS.get(name, ())])
        entries[name] = ProviderEntry(base_url=url, api=api, models=models)
    return entries


def _definition(
    model_id: str, can: str, window: int, most: int, price_in: float, price_out: float, cache_read: float, cache_write: float
) -> ModelDefinition:
    return ModelDefinition(
        id=model_id,
        reasoning="r" in can,
        input=("text", "image") if "i" in can else ("text",),
        cost=Cost(input=price_in, output=price_out, cache_read=cache_read or price_in, cache_write=cache_write or price_in),
        context_window=window,
        max_tokens=most,
    )
