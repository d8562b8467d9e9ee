"""`mayros setup`: the first configuration, a token and a workspace, so that the gateway can start. Does nothing twice and overwrites nothing.

Imports config, net, core types and storage.workspace.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from mayros.cli import candidates
from mayros.cli.models import set_model
from mayros.cli.place import Place, credential, here
from mayros.core.models import EMBEDDED, key_variables

if TYPE_CHECKING:
    from mayros.config.load import Loaded

KEY_BYTES = 4096
#: The model that a vendor's key makes the primary one; the first vendor here whose key is in the environment wins.
DEFAULT_MODELS = {
    "anthropic": "anthropic/claude-sonnet-4-6",
    "openai": "openai/gpt-5-mini",
    "google": "google/gemini-2.5-flash",
    "openrouter": "openrouter/openrouter/auto",
    "groq": "groq/llama-3.3-70b-versatile",
    "mistral": "mistral/mistral-small-latest",
    "xai": "xai/grok-4.3",
    "deepseek": "deepseek/deepseek-chat",
    "together": "together/meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "cerebras": "cerebras/gpt-oss-120b",
}


@click.command()
@click.option(
    "--provider",
    metavar="ID",
    shell_complete=candidates.providers,
    help="Add a key for this provider: anthropic, openai, google, openrouter, groq, mistral, ...",
)
@click.option(
    "--api-key-file",
    "key_file",
    metavar="FILE",
    shell_complete=candidates.files,
    help="The file that holds the key (- is standard input); without it you are asked.",
)
@click.option(
    "--model",
    "model_ref",
    metavar="REF",
    shell_complete=candidates.model_refs,
    help="The model that agents ask first from now on, as provider/model.",
)
@click.pass_context
def setup(ctx: click.Context, provider: str | None, key_file: str | None, model_ref: str | None) -> None:
    """Write a first configuration with a token, and a workspace with short starter files; with --provider, add a provider's key.

    What exists is kept as it is. The primary model of a new configuration is that of --provider, else of the first vendor whose API key is in the
    environment, else the embedded one. A key is copied into the state directory, readable by you alone; it never stands on a command line.
    """
    from mayros.net.statedir import StateDir, recognise_foreign

    place = here(ctx)
    foreign = recognise_foreign(place.state_dir)
    if foreign:
        raise click.ClickException(f"{foreign} Nothing was written.")
    if key_file is not None and provider is None:
        raise click.UsageError("--api-key-file needs --provider: whose key is it?")
    loaded = place.load()
    key = read_key(place, loaded, provider, key_file) if provider is not None else None
    StateDir.open(place.state_dir)
    if loaded.exists:
        click.echo(f"Configuration: {place.config_path} (kept as it is)")
    else:
        _write(place, loaded, model_ref or DEFAULT_MODELS.get(provider or ""))
        loaded = place.load()
    if provider is not None and key is not None:
        loaded = add_key(place, provider, key)
    if model_ref is not None:
        ctx.invoke(set_model, ref=model_ref, fallbacks=(), agent_id=None)
        loaded = place.load()
    if provider is not None:
        _unasked(place, loaded, provider)
    _workspace(place, loaded)
    first = "`mayros models install smollm2`, then " if _lacks_model(place, loaded) else ""
    click.echo(f"Next: {first}`mayros gateway run`, and in another terminal `mayros agent --message hi`.")


def choose(environ: Mapping[str, str]) -> tuple[str, list[str], str | None]:
    """Primary model, fallbacks, and the variable that decided; the embedded model alone where no vendor's key is set."""
    for vendor, model in DEFAULT_MODELS.items():
        variable = next((name for name in key_variables(vendor) if environ.get(name, "").strip()), None)
        if variable is not None:
            return model, [EMBEDDED], variable
    return EMBEDDED, [], None


def _write(place: Place, loaded: Loaded, chosen: str | None) -> None:
    from mayros.config.write import initial

    model, fallbacks, variable = (chosen, [EMBEDDED], None) if chosen is not None else choose(loaded.environ)
    # A token that clients may know already, from the environment or an earlier start, stays the token.
    known = None if loaded.environ.get("CREDENTIALS_DIRECTORY") else credential(place, loaded)
    token = known.value if known is not None and known.mode == "token" and known.value else None
    initial(
        place.config_path,
        token=token or secrets.token_urlsafe(32),
        model=model,
        fallbacks=fallbacks,
        workspace=os.path.join(place.state_dir, "workspace"),
    )
    click.echo(f"Configuration: {place.config_path} (new, with {'the token in use' if token else 'a fresh token'}; `mayros gateway token` prints it)")
    if chosen is not None:
        click.echo(f"Model: {model}, and {EMBEDDED} when it fails")
    elif variable is None:
        click.echo(f"Model: {model} (no vendor's API key is in the environment; `mayros models install smollm2` downloads it)")
    else:
        click.echo(f"Model: {model} ({variable} is set), and {EMBEDDED} when it fails")


def read_key(place: Place, loaded: Loaded, provider: str, key_file: str | None) -> str:
    """The key for a provider: from a file, standard input, or typed without an echo. Raises ClickException."""
    from mayros.config.check import secret_problem
    from mayros.net.files import read_bounded

    known = place.settings(loaded).catalogue.providers
    if provider not in known or known[provider].api == "local":
        names = ", ".join(sorted(name for name, one in known.items() if one.api != "local"))
        raise click.UsageError(f"there is no provider {provider!r}. There are: {names}; your own go under models.providers of the configuration")
    if key_file == "-":
        key = sys.stdin.read(KEY_BYTES + 1).strip()
    elif key_file is not None:
        try:
            key = read_bounded(key_file, KEY_BYTES).decode("utf-8").strip()
        except ValueError:
            key = ""
    else:
        key = str(click.prompt(f"API key for {provider}", hide_input=True)).strip()
    if not key or len(key) > KEY_BYTES or not key.isascii() or " " in key or secret_problem(key) is not None:
        raise click.ClickException("that is no API key: one line of ASCII text without blanks")
    return key


def add_key(place: Place, provider: str, key: str) -> Loaded:
    """Keep the key in the state directory (mode 0600), and name that file in `auth.profiles` of the configuration."""
    from mayros.cli.acts import change_file
    from mayros.net.files import write_atomic

    folder = os.path.join(place.state_dir, "keys")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, provider)
    write_atomic(path, key.encode() + b"\n", 0o600)
    os.chmod(path, 0o600)  # where it was there before

    def edit(tree: dict[str, Any]) -> None:
        profiles = tree.setdefault("auth", {}).setdefault("profiles", {})
        if not any(one.get("keyFile") in (path, f"keys/{provider}") for one in profiles.values() if isinstance(one, dict)):
            name, number = provider, 1
            while name in profiles:
                number += 1
                name = f"{provider}-{number}"
            profiles[name] = {"provider": provider, "keyFile": f"keys/{provider}"}

    loaded = change_file(place, f"setup --provider {provider}", edit)
    click.echo(f"Key: {path}, used for {provider} (auth.profiles in {place.config_path})")
    return loaded


def _unasked(place: Place, loaded: Loaded, provider: str) -> None:
    """Say how a provider's models come to be asked, where no agent asks any."""
    agents = place.settings(loaded).directory.agents.values()
    if not any(model.provider.id == provider for agent in agents for model in agent.models):
        model = DEFAULT_MODELS.get(provider, f"{provider}/MODEL")
        click.echo(f"No agent asks a model of {provider} yet: `mayros models set {model}` makes one the first.")


def _lacks_model(place: Place, loaded: Loaded) -> bool:
    """Whether the default agent's first model is the embedded one and is not here."""
    from mayros.providers.embedded import installed

    directory = place.settings(loaded).directory
    models = directory.agents[directory.default_id].models
    return bool(models) and models[0].ref == EMBEDDED and installed(place.state_dir) is None


def _workspace(place: Place, loaded: Loaded) -> None:
    from mayros.storage.workspace import seed

    settings = place.settings(loaded)
    workspace = settings.directory.agents[settings.directory.default_id].workspace
    if loaded.config.agents.defaults.skip_bootstrap:
        click.echo(f"Workspace: {workspace} (agents.defaults.skipBootstrap is set: no starter files)")
        return
    written = seed(workspace)
    click.echo(f"Workspace: {workspace} ({'starter files: ' + ', '.join(written) if written else 'kept as it is'})")
