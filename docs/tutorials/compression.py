# %% [markdown]
# # Compressed messages
#
# A setting compresses the messages of any algorithm. Error feedback sends later what compression has lost. Here twenty
# clients send 2 % of their update, with and without it.

# %%
from dataclasses import replace

import torch
from IPython.display import Image
from rich import print

from algorithms import FedAvg
from fedsim import (
    EF14Uplink,
    Experiment,
    FixedSize,
    IidPartitioner,
    LocalWork,
    Plain,
    TopK,
    compare,
    curves,
    render,
    run,
)

base = Experiment(
    FedAvg(lr=0.3), partition=IidPartitioner(20), local=LocalWork(batch_size=16), sampling=FixedSize(1.0), rounds=15
)
ways = {"whole": None, "top 2 %": Plain(TopK(0.02)), "top 2 %, EF14": EF14Uplink(TopK(0.02))}
runs = {name: run(replace(base, uplink=uplink), progress=False) for name, uplink in ways.items()}
comparison = compare(list(runs.values()), labels={str(made.path): name for name, made in runs.items()})
print(render(comparison))

# %% [markdown]
# The megabytes count both directions, and the server still sends whole models. Up alone:

# %%
curves(comparison, "compression.png", x="megabytes_up", width="column")
Image("compression.png")

# %% [markdown]
# What is charged is what is sent: the length of the codec's bytes, indices and headers included.

# %%
x = torch.randn(10_000)
packed = TopK(0.02).compress(x, None)
sent = packed.by.encode(packed.parts, packed.d)
assert len(sent) == int(packed.by.nbytes(packed.parts, packed.d))
print(f"{len(sent)} bytes for {packed.parts[1].numel()} of 10,000 numbers, {4 * 10_000} uncompressed")

# %% [markdown]
# [Compressed messages](../compression.md) says which mechanism suits which algorithm, how to compress downwards and
# among neighbours, and which step sizes theory gives. A compressor of your own is [one method](../own.md).
