"""An asynchronous algorithm whose client code fails or waits in one place, for tests; workers import it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from algorithms import FedAsync
from fedsim import Local, Vector
from tests.backends.ray.dying import round_of


@dataclass(frozen=True)
class Moody(FedAsync):
    """FedAsync, but for each client's task of one number.

    Args:
        mood: what they do.
        folder: where each that waits makes a file, and goes on once there is ``go``; where the first to be killed does.
        at_task: the number of their task.
        driver: number of the test's own process, which is never killed.
    """

    mood: Literal["wait", "kill", "raise", "diverge", "evaluate more"] = "wait"
    folder: str = ""
    at_task: int = 3
    driver: int = 0

    def client(self, local: Local, x: Vector) -> Vector:
        y = super().client(local, x)
        if self.at_task != round_of(local):
            return y
        here = Path(self.folder, f"{os.getpid()}")
        if self.mood == "wait":
            here.touch()
            end = time.monotonic() + 120
            while not here.with_name("go").exists():
                if time.monotonic() > end:
                    raise TimeoutError("nobody made go")
                time.sleep(0.01)
        if self.mood == "kill" and os.getpid() != self.driver and not any(Path(self.folder).iterdir()):
            here.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mood == "raise":
            raise ValueError("somebody's bug")
        if self.mood == "evaluate more":
            y = y - 0.01 * local.grad(y)
        return y / 0 if self.mood == "diverge" else y
