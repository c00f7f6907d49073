"""Clients in the actors of a Ray session, on this machine or a cluster. Only ``session`` imports Ray, when called.

    settings.py     what a user sets
    session.py      our own Ray session: quiet, never somebody else's, gone afterwards
    host.py         the controller's host: session, plan, and rounds that are done again after a failure
    actors.py       the ``Backend``: runs of blocks on workers
    workers.py      the workers: told of the federation, asked for results, started again when they die
    worker.py       what runs in one: blocks of clients, sums of messages, exchanges of gossip
    telling.py      what driver and workers tell each other
    messages.py     a cohort's messages, held by workers
    store.py        tensors in the object store
    pool.py         independent calls at the same time, for sweeps
"""
