"""How an API server is reached, and as which user: what a kubeconfig or a ServiceAccount says, in plain values that can
be handed to another process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec


class PluginCommand(msgspec.Struct, frozen=True):
    """A credential plugin of a kubeconfig: the program, and what it gets to know of the cluster."""

    args: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None
    api_version: str
    cluster: Any = None
    """The kubeconfig's part on the cluster, if the plugin wants it."""


class ApiServer(msgspec.Struct, frozen=True):
    """One API server and one user. Paths are absolute; what is empty is not there."""

    url: str
    proxy: str = ""
    tls_server_name: str = ""
    verify: bool = True
    """Whether its certificate is checked."""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    authorization: str = ""
    """The value of the Authorization header, where it stays the same."""
    token_file: str = ""
    """Where the token stands now."""
    plugin: PluginCommand | None = None
