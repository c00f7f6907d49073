"""Deployment: the same algorithms, with clients behind Flower. Importing a module of it needs the package flwr.

    protocol.py     what travels: calls and replies as Flower's records, checked on arrival
    transport.py    calls out, replies in: timeouts, retries, nodes that come and go
    backend.py      the ``Backend`` whose messages and memories are at the nodes
    server_app.py   the ServerApp: an experiment, a run directory, a policy
    policy.py       what happens when a node does not answer
    store.py        a node's memory on its own disk, in versions
    node.py         a node's half: answer calls with its own data
    worker.py       the process in which a node stays ready between messages
    client_app.py   the ClientApp
"""
