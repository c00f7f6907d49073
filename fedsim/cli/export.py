"""``fedsim export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedsim.cli.output import Arguments, writing
from fedsim.errors import ConfigError
from fedsim.record.directory import open_run

SUFFIXES = (".pt", ".safetensors")


def export(argv: Sequence[str]) -> int:
    """Write the state_dict of a trained model, and print its path."""
    about = "Write the model that a run has trained: a state_dict for load_state_dict of the same PyTorch module."
    parser = Arguments("fedsim export", description=about)
    parser.add_argument("run", type=Path, metavar="DIR", help="run directory")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="new file: .safetensors or .pt")
    parser.add_argument("--seed", type=int, help="seed of the run (default: the first)")
    parser.add_argument("--node", type=int, help="without a server: this node's model (default: the average)")
    arguments = parser.parse_args(argv)
    path: Path = arguments.output
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--output is {path}; expected a file named *{' or *'.join(SUFFIXES)}")
    if path.exists():
        raise ConfigError(f"{path} exists; choose another --output, or remove it first")
    from fedsim.controller.trained import trained  # deferred: slow to import

    module, round = trained(open_run(arguments.run), arguments.seed, arguments.node)
    state = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    with writing(path):
        if path.suffix == ".pt":
            import torch

            torch.save(state, path)
        else:
            from safetensors.torch import save_file

            save_file(state, path)
    print(f"{path}: {type(module).__name__} after round {round}, {sum(t.numel() for t in state.values()):,} numbers")
    return 0
