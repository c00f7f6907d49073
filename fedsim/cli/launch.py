"""``fedsim node`` and ``fedsim superlink``: Flower's processes, each closed to what it need not do."""

from __future__ import annotations

from collections.abc import Sequence

from fedsim.backends.flower.deploy.install import flower_version
from fedsim.cli.output import Arguments


def node(argv: Sequence[str]) -> int:
    """Run a node of a deployment."""
    parser = Arguments(
        "fedsim node",
        description="Run a Flower SuperNode that runs one app alone. All other options are those of flower-supernode.",
    )
    parser.add_argument("--app", required=True, metavar="SHA256", help="hash of the app, as fedsim deploy prints it")
    arguments, options = parser.parse_known_args(list(argv))
    from fedsim.backends.flower.node.launch import check_hash
    from fedsim.backends.flower.node.launch import node as launch

    app = check_hash(arguments.app)
    flower_version()
    launch(app, options)
    return 0


def superlink(argv: Sequence[str]) -> int:
    """Run the SuperLink of a deployment."""
    parser = Arguments(
        "fedsim superlink",
        description="Run a Flower SuperLink on which only its own machine can start runs. All other options are those"
        " of flower-superlink.",
    )
    what = "hash of the one app that can be started, as fedsim deploy prints it (default: any)"
    parser.add_argument("--app", metavar="SHA256", help=what)
    arguments, options = parser.parse_known_args(list(argv))
    from fedsim.backends.flower.node.launch import check_hash

    app = None if arguments.app is None else check_hash(arguments.app)
    flower_version()
    from fedsim.backends.flower.server.gate import superlink as launch

    launch(options, app)
    return 0
