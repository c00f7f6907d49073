"""Which converges faster on skewed data, FedAvg or FedSpeed?  Run: python -m experiments.quickstart"""

from dataclasses import replace

from rich import print

from algorithms import FedAvg, FedSpeed
from fedsim import DirichletPartitioner, Experiment, FixedSize, LocalWork, compare, render, run

skewed = DirichletPartitioner(50, alpha=0.1, min_partition_size=2)
work = LocalWork(batch_size=16, epochs=2)
base = Experiment(FedAvg(lr=0.5), partition=skewed, local=work, sampling=FixedSize(0.2), rounds=50, seeds=3)
runs = [run(base), run(replace(base, algorithm=FedSpeed(lr=0.3, rho=0.05)))]
print(render(compare([r.path for r in runs])))
