# %% [markdown]
# # Deployment
#
# The experiment that ran in simulation runs on real clients, over Flower. `fedsim deploy` starts a server and three
# nodes as processes on this machine, with TLS and a key for each node, and stops them at the end. (Needs the extra
# `flower`.)

# %%
import json
import subprocess
from pathlib import Path

Path("experiment.yaml").write_text("""\
algorithm: {name: FedSpeed, lr: 0.3, rho: 0.05}
data: digits
partition: {name: DirichletPartitioner, num_partitions: 3, alpha: 0.3}
sampling: {fraction: 1.0}
rounds: 2
""")


def fedsim(*words: str) -> str:
    return subprocess.run(["fedsim", *words], capture_output=True, text=True, check=True).stdout


deploy = ["deploy", "experiment.yaml", "--nodes", "3", "--port", "0", "--output", "runs/deployed", "--json"]
deployed = json.loads(fedsim(*deploy))
deployed["final"]["server/test"]

# %% [markdown]
# The same seeds give the same clients, models and minibatches, so a simulation agrees with the deployment, and the
# ledger charges the same bytes.

# %%
loop = ["--backend", "loop", "--threads", "1"]             # what nodes compute with
simulated = json.loads(fedsim("run", "experiment.yaml", *loop, "--output", "runs/simulated", "--json"))
for scope, metric in (("server/test", "loss"), ("total", "bytes_up")):
    a, b = (made["final"][scope][metric]["mean"] for made in (deployed, simulated))
    print(f"{scope} {metric}: deployed {a}, simulated {b}")
    assert abs(a - b) <= 1e-6 * abs(b)

# %% [markdown]
# For several machines, `--print-commands` prints what to type on each. [Real clients](../deploy.md) says what is
# trusted, what happens when nodes fail, and how each node uses its own data.
