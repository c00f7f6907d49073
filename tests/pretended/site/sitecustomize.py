"""On PYTHONPATH: a process has the pretended GPUs of PRETENDED_GPUS as soon as it imports PyTorch."""

import importlib.abc
import importlib.util
import os
import sys


class Finder(importlib.abc.MetaPathFinder):
    """Loads the pretended GPU right before PyTorch, and patches it right after."""

    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        execute = spec.loader.exec_module

        def exec_module(module):
            from tests.pretended import device

            device.load()
            execute(module)
            device.patch()

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("PRETENDED_GPUS"):
    sys.meta_path.insert(0, Finder())
