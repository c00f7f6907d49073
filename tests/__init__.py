"""Tests, each worker of which has a core: one thread, whatever the environment says; read when PyTorch is loaded."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
