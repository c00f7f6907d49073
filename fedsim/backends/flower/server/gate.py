"""A SuperLink whose control API other machines cannot reach, though nodes come to the same port, and on which one app
alone can be started.

Flower serves its control API (who may start runs), its runtime API (of ServerApps) and its fleet API (of nodes) on one
port, and only the last one knows its callers by their keys. So whatever is not of the fleet is for this machine alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Any

from fedsim.backends.flower.protocol.program import run

OPEN = "/v1/fleet/"
"""Paths that nodes need, which ask for a registered key."""
HEALTH = "/health"
FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
"""Headers of proxies."""
DOORS = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API", "FORWARDED_ALLOW_IPS")
"""Environment variables that would open further ports, or let callers claim to be another machine."""


class Gate:
    """ASGI middleware that answers 403 to other machines, except on the paths of nodes.

    Args:
        app: Flower's application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan" or _is_for_nodes(scope["path"]) or _is_here(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only from the server itself"})


def _is_for_nodes(path: str) -> bool:
    return path == HEALTH or (path.startswith(OPEN) and ".." not in path)


def _is_here(scope: dict[str, Any]) -> bool:
    """Whether a request comes from this machine, and for no other: a proxy here may say for whom it asks."""
    client = scope.get("client")
    try:
        address = ip_address(client[0] if client else "")
    except ValueError:
        return False
    if any(name in FORWARDED for name, _ in scope.get("headers", ())):
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def alone(create_run: Callable[..., int], app: str) -> Callable[..., int]:
    """Create runs as Flower's state does with ``create_run``, but of the app with this SHA-256 alone."""
    from flwr.supercore.error import ApiErrorCode, FlowerError

    def create(state: Any, fab_id: Any, fab_version: Any, fab_hash: Any, *others: Any, **named: Any) -> int:
        if fab_hash != app:
            said = f"refused the app {fab_hash!s:.64}; this SuperLink runs {app} alone"
            print(f"fedsim: {said}", file=sys.stderr, flush=True)
            raise FlowerError(ApiErrorCode.INVALID_RUN_CONFIG, said, said)
        return create_run(state, fab_id, fab_version, fab_hash, *others, **named)

    return create


def superlink(options: Sequence[str], app: str | None = None) -> None:
    """Run a SuperLink with the options of ``flower-superlink``, behind the `Gate`.

    Args:
        options: of ``flower-superlink``.
        app: SHA-256 of the one app that can be started on it; None for any.

    Raises:
        ConfigError: the options are wrong.
        DeployError: it ended with an error.
    """
    from flwr.server.superlink.linkstate import in_memory_linkstate, sql_linkstate
    from flwr.superlink import main

    create = main.create_app

    def gated(*settings: Any) -> Any:
        made = create(*settings)
        made.add_middleware(Gate)
        return made

    main.create_app = gated  # type: ignore[assignment]
    if app is not None:
        for state in (in_memory_linkstate.InMemoryLinkState, sql_linkstate.SqlLinkState):
            state.create_run = alone(state.create_run, app)  # type: ignore[method-assign]
    for door in DOORS:
        os.environ.pop(door, None)
    run("superlink", options)
