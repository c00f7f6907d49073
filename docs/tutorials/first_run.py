# %% [markdown]
# # A first run
#
# Twenty clients hold handwritten digits, each mostly from a few classes. Do they learn more with FedAvg, or with
# SCAFFOLD, which corrects the drift of clients towards their own data?

# %%
from dataclasses import replace

from IPython.display import Image
from rich import print

from algorithms import FedAvg, Scaffold
from fedsim import DirichletPartitioner, Experiment, FixedSize, LocalWork, compare, curves, render, run

skewed = DirichletPartitioner(20, alpha=0.2, min_partition_size=10)
base = Experiment(
    FedAvg(lr=0.3), partition=skewed, local=LocalWork(batch_size=16), sampling=FixedSize(0.5), rounds=15, seeds=3
)

# %% [markdown]
# An `Experiment` holds everything that determines a result; `replace` copies it with the named settings changed. A run
# writes a directory, which is never overwritten.

# %%
runs = [run(experiment, progress=False) for experiment in (base, replace(base, algorithm=Scaffold(lr=0.2)))]
sorted(path.name for path in runs[0].path.iterdir())

# %% [markdown]
# Both runs have the same seeds, so clients, their data, the initial models and the minibatches are the same, and
# differences are paired by seed. The columns on the right are the costs of reaching a common accuracy.

# %%
comparison = compare(runs)
print(render(comparison))

# %% [markdown]
# SCAFFOLD sends two vectors where FedAvg sends one, so curves against bytes differ from curves against rounds. Every
# message is charged its true size, header included.

# %%
curves(comparison, "curves.png", x="megabytes", width="column")
Image("curves.png")

# %% [markdown]
# On the command line this is
#
#     fedsim run --algorithm FedAvg --algorithm.lr 0.3 --partition.num_partitions 20 --partition.alpha 0.2 ...
#     fedsim compare runs/fedavg-digits runs/scaffold-digits --plot curves.png --x megabytes
#
# and `fedsim run --help` explains every setting. Next: [an algorithm of your own](own_algorithm.py), or [the
# guide](../guide.md), which says what the numbers mean.
