# %% [markdown]
# # Without a server
#
# Sixteen nodes average only with their neighbours. How fast they agree depends on the topology: who is whose neighbour.

# %%
from dataclasses import replace

from IPython.display import Image
from rich import print

from algorithms import DFedAvg, GradientTracking
from fedsim import DirichletPartitioner, Evaluation, Experiment, LocalWork, compare, curves, render, run
from fedsim.gossip import mixing_matrix
from topologies import Complete, Exponential, Ring, Static, spectral

for graph in (Ring(), Exponential(), Complete()):
    w = mixing_matrix(Static(graph), 1, 0, 16)
    print(f"{type(graph).__name__:<12} disagreement times {spectral(w).lam:.3f} a step, {w.nnz - 16} messages")

# %% [markdown]
# A small factor means fast agreement, and the messages are its cost. With the same data and steps:

# %%
base = Experiment(
    DFedAvg(lr=0.3), partition=DirichletPartitioner(16, alpha=0.1, min_partition_size=10), topology=Static(Ring()),
    local=LocalWork(batch_size=16), rounds=20, evaluation=Evaluation(every=5),
)  # fmt: skip
runs = []
for graph in (Ring(), Exponential(), Complete()):
    experiment = replace(base, topology=Static(graph)).with_execution(name=type(graph).__name__.lower())
    runs.append(run(experiment, progress=False))
comparison = compare(runs, scope="average/test")
print(render(comparison))

# %%
curves(comparison, "gossip.png", x="megabytes", width="column")
Image("gossip.png")

# %% [markdown]
# That is the average of all nodes' models, which no node has. These are the nodes' own models, and how far apart they
# are:

# %%
print(render(compare(runs, scope="nodes/test", metric="accuracy_mean")))
print(render(compare(runs, scope="nodes", metric="consensus_distance")))

# %% [markdown]
# Plain averaging stops short of the optimum if nodes disagree. Gradient tracking, `replace(base,
# algorithm=GradientTracking(lr=0.05))`, does not, at the cost of a second vector. For changing topologies, failing
# links and directed graphs, see [Without a server](../gossip.md).

# %%
tracked = run(replace(base, algorithm=GradientTracking(lr=0.05), rounds=5), progress=False)
tracked.path.name
