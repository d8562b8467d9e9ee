"""What vendors say when they refuse, in their own words, and what it is taken for (providers/failures.py)."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import ContextLengthExceeded
from mayros.net.redact import Redactor
from mayros.providers.failures import refusal, stream_failure


def said(message: str, **more: Any) -> dict[str, Any]:
    """An error in the usual form."""
    return {"error": {"message": message, **more}}


def kind(status: int, body: object) -> str | None:
    """What a refusal is taken for."""
    return refusal(status, {}, json.dumps(body).encode(), "acme", Redactor(()), 0.0).kind


class Refusals(SynchronousTestCase):
    """Words of vendors and of servers that one runs oneself. Their sources: the vendors' documentation, and reports of users."""

    def test_a_conversation_that_is_too_long(self) -> None:
        """One typed error for all of them, also where it comes after a 200."""
        for vendor, status, body in (
            ("anthropic", 400, said("prompt is too long: 210000 tokens > 200000 maximum", type="invalid_request_error")),
            ("anthropic", 400, said("input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000")),
            ("anthropic", 413, said("Request exceeds the maximum size", type="request_too_large")),
            ("openai", 400, said("This model's maximum context length is 128000 tokens. However, ...", code="context_length_exceeded")),
            ("openai", 400, said("Your input exceeds the context window of this model. Please adjust your input and try again.")),
            ("azure", 400, said("Input tokens exceed the configured limit of 272000 tokens.", code="context_length_exceeded")),
            ("google", 400, said("The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).", code=400)),
            ("xai", 400, {"code": "x", "error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."}),
            ("groq", 400, said("Please reduce the length of the messages or completion.")),
            ("cerebras", 400, {"message": "Please reduce the length of the messages or completion. Current length is 12000 while limit is 8192"}),
            ("mistral", 400, {"object": "error", "message": "Prompt contains 65673 tokens, too large for model with 32768 maximum context length"}),
            ("openrouter", 400, said("This endpoint's maximum context length is 32768 tokens. However, you requested about 40000 tokens")),
            ("moonshot", 400, said("Invalid request: Your request exceeded model token limit: 131072 (requested: 140000)")),
            ("minimax", 400, said("invalid params, context window exceeds limit (2013)")),
            ("zai", 400, said("Prompt exceeds max length", code="1261")),
            ("together", 400, said("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 131073. Given: 140000")),
            ("bedrock", 400, said("Input is too long for requested model.")),
            ("copilot", 400, said("prompt token count of 150000 exceeds the limit of 128000")),
            ("llama.cpp", 400, said("the request exceeds the available context size, try increasing it", type="exceed_context_size_error")),
            ("vllm", 400, {"object": "error", "message": "This model's maximum context length is 8192 tokens. However, you requested 9000"}),
            ("vllm", 400, said("The decoder prompt (length 9000) is longer than the maximum model length of 8192.")),
            ("lmstudio", 400, {"error": "The number of tokens to keep from the initial prompt is greater than the context length."}),
            ("ollama", 400, said("input length exceeds the context length")),
            ("tgi", 422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193.", "error_type": "validation"}),
        ):
            self.assertEqual(kind(status, body), "overflow", vendor)
            if status != 413:
                failure = stream_failure(body.get("error", body), "acme", Redactor(()))
                self.assertIsInstance(failure, ContextLengthExceeded, vendor)

    def test_what_only_sounds_like_it(self) -> None:
        """A limit of a minute, and limits on the answer."""
        tpm = "Request too large for model `llama-3.3-70b-versatile` on tokens per minute (TPM): Limit 6000, Requested 10000"
        for status, body, expected in (
            (413, said(tpm, type="tokens", code="rate_limit_exceeded"), "rate_limit"),
            (429, said("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 40000.", type="tokens"), "rate_limit"),
            (400, said("max_tokens is too large: 100000. This model supports at most 16384 completion tokens"), "refused"),
            (400, said("max_tokens: 999999 > 64000, which is the maximum allowed number of output tokens for claude-sonnet-4-5"), "refused"),
        ):
            self.assertEqual(kind(status, body), expected, body)

    def test_keys_and_money(self) -> None:
        """What another key may not have."""
        quota = "You exceeded your current quota, please check your plan and billing details."
        for vendor, status, body, expected in (
            ("openai", 429, said(quota, type="insufficient_quota"), "billing"),
            ("google", 429, said(quota, code=429, status="RESOURCE_EXHAUSTED"), "rate_limit"),
            ("google", 400, said("API key not valid. Please pass a valid API key.", status="INVALID_ARGUMENT"), "auth"),
            ("xai", 400, {"code": "x", "error": "Incorrect API key provided: xa***yz."}, "auth"),
            ("xai", 403, {"code": "x", "error": "Your newly created teams doesn't have any credits yet."}, "billing"),
            ("anthropic", 400, said("Your credit balance is too low to access the Anthropic API."), "billing"),
            ("anthropic", 400, said("You have reached your specified API usage limits. You will regain access on 2026-12-01."), "billing"),
            ("openrouter", 402, said("Insufficient credits", code=402), "billing"),
            ("deepseek", 402, said("Insufficient Balance"), "billing"),
        ):
            self.assertEqual(kind(status, body), expected, vendor)
