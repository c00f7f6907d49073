"""``fedsim export``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from fedsim.cli.allow import HELP
from fedsim.cli.output import Arguments, add_json, print_json
from fedsim.errors import ConfigError, suggest
from fedsim.record.directory import RunDirectory, open_run
from fedsim.record.files import atomic
from fedsim.record.places import check_file, writing
from fedsim.record.sinks.sink import SINKS, follow_metrics, write_metrics

SUFFIXES = (".pt", ".safetensors")


def export(argv: Sequence[str]) -> int:
    """Write the state_dict of a trained model, or the metrics for another tool, and print where."""
    about = (
        "Write the model that a run has trained: a state_dict for load_state_dict of the same PyTorch module;"
        " or its metrics, for TensorBoard, Weights & Biases or trackio."
    )
    parser = Arguments("fedsim export", description=about)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, metavar="FILE", help="new file for the model: .safetensors or .pt")
    what.add_argument(
        "--to", nargs=2, metavar=("TOOL", "DIR"),
        help=f"write the metrics of all seeds for a tool, {', '.join(SINKS)}, into a new folder of DIR with the run's"
        " name, or into the folder DIR of all runs of trackio",
    )
    parser.add_argument("--follow", action="store_true", help="with --to: write on while the run is under way")
    parser.add_argument("--allow", metavar="MODULE", help=HELP)
    parser.add_argument("--seed", type=int, help="with --output: seed of the run (default: the first)")
    parser.add_argument("--node", type=int, help="with --output, no server: this node's model (default: the average)")
    add_json(parser, "export")
    arguments = parser.parse_args(argv)
    run = open_run(arguments.run)
    if arguments.output:
        if arguments.follow:
            parser.error("--follow is of metrics, --to TOOL DIR; a model is exported once, with --output")
        return _export_model(run, arguments.output, arguments.seed, arguments.node, arguments.json)
    if (arguments.seed, arguments.node) != (None, None):
        parser.error("--seed and --node are of the model, --output FILE; --to writes the metrics of all seeds")
    tool, root = arguments.to
    return _export_metrics(run, tool, root, arguments.follow, arguments.json)


def _export_metrics(run: RunDirectory, tool: str, root: str, follow: bool, as_json: bool) -> int:
    if tool not in SINKS:
        raise ConfigError(f"there is no tool {tool!r}; {suggest(tool, SINKS)}")
    folder = Path(root)
    with writing(folder / run.path.name):
        written, see = (follow_metrics if follow else write_metrics)(run, tool, folder)
    if as_json:
        print_json({"folder": str(written), "see": see})
    else:
        print(f"{written}: see it with {see}")
    return 0


def _export_model(run: RunDirectory, path: Path, seed: int | None, node: int | None, as_json: bool) -> int:
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--output is {path}; expected a file named *{' or *'.join(SUFFIXES)}")
    if path.exists():
        raise ConfigError(f"{path} exists; choose another --output, or remove it first")
    check_file(path, "model.pt")
    from fedsim.controller.trained import trained  # deferred: slow to import
    from fedsim.record.checkpoint import CheckpointWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CheckpointWarning)
        module, round = trained(run, seed, node)
    for warning in caught:                                 # the model of an earlier round is exported
        if issubclass(warning.category, CheckpointWarning):
            print(f"fedsim: note: {warning.message}; the model is that after round {round}", file=sys.stderr)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    state = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    with writing(path), atomic(path) as file:
        if path.suffix == ".pt":
            import torch

            torch.save(state, file)
        else:
            from safetensors.torch import save

            file.write(save(state))
    name, numbers = type(module).__name__, sum(t.numel() for t in state.values())
    if as_json:
        print_json({"file": str(path), "model": name, "round": round, "numbers": numbers})
    else:
        print(f"{path}: {name} after round {round}, {numbers:,} numbers")
    return 0
