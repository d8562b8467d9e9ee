"""`mayros setup`: the first configuration, a token and a workspace, so that the gateway can start. Does nothing twice and overwrites nothing.

Imports config, net, core types and storage.workspace.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from mayros.cli.place import Place, credential, here
from mayros.core.models import EMBEDDED, VENDORS

if TYPE_CHECKING:
    from mayros.config.load import Loaded

#: The model that a vendor's key makes the primary one; the first vendor here whose key is in the environment wins.
DEFAULT_MODELS = {
    "openai": "openai/gpt-5-mini",
    "openrouter": "openrouter/openrouter/auto",
    "groq": "groq/llama-3.3-70b-versatile",
    "mistral": "mistral/mistral-small-latest",
    "xai": "xai/grok-4",
    "together": "together/meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "cerebras": "cerebras/gpt-oss-120b",
}


@click.command()
@click.pass_context
def setup(ctx: click.Context) -> None:
    """Write a first configuration with a token, and a workspace with short starter files.

    What exists is kept as it is. The primary model is that of the first vendor whose API key is in the environment, else the embedded one.
    """
    from mayros.net.statedir import StateDir, recognise_foreign

    place = here(ctx)
    foreign = recognise_foreign(place.state_dir)
    if foreign:
        raise click.ClickException(f"{foreign} Nothing was written.")
    loaded = place.load()
    StateDir.open(place.state_dir)
    if loaded.exists:
        click.echo(f"Configuration: {place.config_path} (kept as it is)")
    else:
        _write(place, loaded)
        loaded = place.load()
    _workspace(place, loaded)
    first = "`mayros models install smollm2`, then " if _lacks_model(place, loaded) else ""
    click.echo(f"Next: {first}`mayros gateway run`, and in another terminal `mayros agent --message hi`.")


def choose(environ: Mapping[str, str]) -> tuple[str, list[str], str | None]:
    """Primary model, fallbacks, and the variable that decided; the embedded model alone where no vendor's key is set."""
    for vendor, model in DEFAULT_MODELS.items():
        variable = VENDORS[vendor][1]
        if environ.get(variable, "").strip():
            return model, [EMBEDDED], variable
    return EMBEDDED, [], None


def _write(place: Place, loaded: Loaded) -> None:
    from mayros.config.write import initial

    model, fallbacks, variable = choose(loaded.environ)
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
    if variable is None:
        click.echo(f"Model: {model} (no vendor's API key is in the environment; `mayros models install smollm2` downloads it)")
    else:
        click.echo(f"Model: {model} ({variable} is set), and {EMBEDDED} when it fails")


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
