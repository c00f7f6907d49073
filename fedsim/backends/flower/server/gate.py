"""A SuperLink whose control API other machines cannot reach, though nodes come to the same port.

Flower serves its control API (who may start runs), its runtime API (of ServerApps) and its fleet API (of nodes) on one
port, and only the last one knows its callers by their keys. So whatever is not of the fleet is for this machine alone.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import Any

OPEN = "/v1/fleet/"
"""Paths that nodes need, which ask for a registered key."""
HEALTH = "/health"


class Gate:
    """ASGI middleware that answers 403 to other machines, except on the paths of nodes.

    Args:
        app: Flower's application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan" or _is_for_nodes(scope["path"]) or _is_here(scope.get("client")):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only from the server itself"})


def _is_for_nodes(path: str) -> bool:
    return path == HEALTH or (path.startswith(OPEN) and ".." not in path)


def _is_here(client: tuple[str, int] | None) -> bool:
    try:
        address = ip_address(client[0] if client else "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def superlink(options: Sequence[str]) -> None:
    """Run a SuperLink with the options of ``flower-superlink``, behind the `Gate`."""
    from flwr.superlink import main
    from flwr.superlink.cli.flower_superlink import flower_superlink

    create = main.create_app

    def gated(*settings: Any) -> Any:
        app = create(*settings)
        app.add_middleware(Gate)
        return app

    main.create_app = gated  # type: ignore[assignment]
    sys.argv = ["flower-superlink", *options]
    flower_superlink()
