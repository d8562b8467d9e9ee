"""Which secret opens the gateway, and keeping secrets out of the environment that children inherit. Imports schema, check, net and errors."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

import msgspec

from mayros.config.check import secret_problem
from mayros.config.gateway import AuthMode
from mayros.config.schema import Config
from mayros.errors import ConfigError
from mayros.net.files import read_bounded
from mayros.net.redact import names_secret


class AuthSecret(msgspec.Struct, frozen=True):
    """How callers prove themselves. `value` is None in the modes `none` and `trusted-proxy`, and in `token` while there is no token yet.

    `source` says where the value came from, for the log; `repr` never shows the value.
    """

    mode: AuthMode
    value: str | None
    source: str

    def __repr__(self) -> str:
        return f"<AuthSecret {self.mode} from {self.source}>"


def resolve(config: Config, environ: Mapping[str, str], state_token: str | None) -> AuthSecret:
    """The secret in force, for the daemon and the CLI alike.

    Order: `gateway-token` in `$CREDENTIALS_DIRECTORY`, the configuration, the environment, `state_token` (that of the state directory).
    `environ` is `Loaded.environ`. Raises ConfigError for a secret that cannot be one, and in mode `password` where none is given.
    """
    auth = config.gateway.auth
    mode: AuthMode = auth.mode or ("password" if auth.password or environ.get("MAYROS_GATEWAY_PASSWORD", "").strip() else "token")
    if mode in ("none", "trusted-proxy"):
        return AuthSecret(mode, None, "none")
    name, configured = ("PASSWORD", auth.password) if mode == "password" else ("TOKEN", auth.token)
    credential, path = _credential(environ)
    if credential is not None:
        return AuthSecret(mode, credential, path)
    if configured:
        return AuthSecret(mode, configured, f"gateway.auth.{mode}")
    variable = f"MAYROS_GATEWAY_{name}"
    value = environ.get(variable, "")
    if value.strip():
        if (problem := secret_problem(value)) is not None:
            raise ConfigError(f"{variable}: {problem}")
        return AuthSecret(mode, value, variable)
    if state_token:
        return AuthSecret(mode, state_token, "gateway-token in the state directory")
    if mode == "password":
        raise ConfigError("gateway.auth.mode is password, but there is none: set gateway.auth.password or MAYROS_GATEWAY_PASSWORD")
    return AuthSecret(mode, None, "none")


def _credential(environ: Mapping[str, str]) -> tuple[str | None, str]:
    """The secret that the service manager handed over, and the path of its file."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "").strip()
    path = os.path.join(folder, "gateway-token")
    if not os.path.isabs(folder):
        return None, path
    try:
        value = read_bounded(path, 4096).decode("utf-8").strip()
    except FileNotFoundError:
        return None, path
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if (problem := secret_problem(value)) is not None:
        raise ConfigError(f"{path}: {problem}")
    return value, path


def take_environment(environ: MutableMapping[str, str]) -> dict[str, str]:
    """A private copy of the whole environment; secrets then leave `environ` itself, so that no child process inherits them.

    Secrets are what net.redact takes for one by its name: `..._TOKEN`, `..._PASSWORD`, `..._SECRET`, `..._KEY`, `..._CREDENTIALS` and their like.
    """
    taken = dict(environ)
    for name in taken:
        if names_secret(name):
            del environ[name]
    return taken
