"""Papers on federated LoRA, transcribed in plain PyTorch in their notation, for a network of two layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Batches = Callable[[int, int], list[tuple[Tensor, Tensor]]]
"""The minibatches of client i in round t."""


class Layer(NamedTuple):
    """W = W_0 + s (R + B A), and the bias."""

    W0: Tensor
    bias: Tensor
    A: Tensor
    B: Tensor
    R: Tensor


Net = tuple[Layer, Layer]


def weights(layer: Layer, s: float) -> Tensor:
    return layer.W0 + s * (layer.R + layer.B @ layer.A)


def trained(net: Net, batches: list[tuple[Tensor, Tensor]], s: float, eta: float, names: str = "AB") -> Net:
    """K steps of gradient descent on the named factors of both layers."""
    for x, y in batches:
        free = {(i, n): getattr(net[i], n).detach().requires_grad_() for i in (0, 1) for n in names}
        one, two = (net[i]._replace(**{n: free[i, n] for n in names}) for i in (0, 1))
        hidden = torch.relu(x.flatten(1) @ weights(one, s).T + one.bias)
        loss = cross_entropy(hidden @ weights(two, s).T + two.bias, y)
        grads = dict(zip(free, torch.autograd.grad(loss, list(free.values())), strict=True))
        one, two = (net[i]._replace(**{n: free[i, n].detach() - eta * grads[i, n] for n in names}) for i in (0, 1))
        net = one, two
    return net


def each_layer(nets: Sequence[Net], rule: Callable[[list[Layer]], Layer]) -> Net:
    return rule([net[0] for net in nets]), rule([net[1] for net in nets])


def mean(tensors: Sequence[Tensor], p: Sequence[float]) -> Tensor:
    return sum((q * t for q, t in zip(p, tensors, strict=True)), torch.zeros_like(tensors[0]))


def shares(S: Sequence[int], p: Sequence[float]) -> list[float]:
    return [p[i] / sum(p[j] for j in S) for i in S]


def rolora(net: Net, cohorts: Sequence[Sequence[int]], batches: Batches, s: float, eta: float, p: list[float]) -> Net:
    """Even rounds, from 0 on, move B, odd ones A."""
    for t, S in enumerate(cohorts):
        name = "AB"[(t + 1) % 2]
        nets = [trained(net, batches(t + 1, i), s, eta, name) for i in S]

        def rule(layers: list[Layer], name: str = name, S: Sequence[int] = S) -> Layer:
            return layers[0]._replace(**{name: mean([getattr(x, name) for x in layers], shares(S, p))})

        net = each_layer(nets, rule)
    return net


def flora(
    net: Net, cohorts: Sequence[Sequence[int]], batches: Batches, s: float, eta: float, p: list[float],
    ranks: Sequence[int],
) -> Net:  # fmt: skip
    """Stacks as matrices: [p_1 B_1 ... p_c B_c] [A_1; ...; A_c]."""
    for t, S in enumerate(cohorts, 1):
        nets = []
        for i in S:
            own = [x._replace(A=x.A[: ranks[i]], B=torch.zeros_like(x.B[:, : ranks[i]])) for x in net]
            nets.append(trained((own[0], own[1]), batches(t, i), s, eta))

        def rule(layers: list[Layer], S: Sequence[int] = S) -> Layer:
            B = torch.cat([q * x.B for q, x in zip(shares(S, p), layers, strict=True)], 1)
            return layers[0]._replace(R=layers[0].R + B @ torch.cat([x.A for x in layers]))

        new = each_layer(nets, rule)
        net = net[0]._replace(R=new[0].R), net[1]._replace(R=new[1].R)
    return net


def fedex(
    net: Net, cohorts: Sequence[Sequence[int]], batches: Batches, s: float, eta: float, p: list[float], exact: bool
) -> Net:
    """Means of A and B, and the residual; without it FedIT."""
    for t, S in enumerate(cohorts, 1):
        nets = [trained(net, batches(t, i), s, eta) for i in S]

        def rule(layers: list[Layer], S: Sequence[int] = S) -> Layer:
            q = shares(S, p)
            A, B = mean([x.A for x in layers], q), mean([x.B for x in layers], q)
            R = layers[0].R + (mean([x.B @ x.A for x in layers], q) - B @ A) * exact
            return layers[0]._replace(A=A, B=B, R=R)

        net = each_layer(nets, rule)
    return net


def hetlora(
    net: Net, cohorts: Sequence[Sequence[int]], batches: Batches, s: float, eta: float, p: list[float],
    ranks: Sequence[int], by_norm: bool,
) -> Net:  # fmt: skip
    """Cut, padded with zeros, and weighed by the norm over all layers."""
    for t, S in enumerate(cohorts, 1):
        nets = []
        for i in S:
            own = [x._replace(A=x.A[: ranks[i]], B=x.B[:, : ranks[i]]) for x in net]
            nets.append(trained((own[0], own[1]), batches(t, i), s, eta))
        size = [sum(float((x.B @ x.A).square().sum()) for x in one) ** 0.5 if by_norm else 1.0 for one in nets]
        q = [share * norm for share, norm in zip(shares(S, p), size, strict=True)]
        q = [share / sum(q) for share in q]
        new = []
        for k in (0, 1):
            A, B = torch.zeros_like(net[k].A), torch.zeros_like(net[k].B)
            for share, one, i in zip(q, nets, S, strict=True):
                A[: ranks[i]] += share * one[k].A
                B[:, : ranks[i]] += share * one[k].B
            new.append(net[k]._replace(A=A, B=B))
        net = new[0], new[1]
    return net
