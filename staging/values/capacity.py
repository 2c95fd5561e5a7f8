"""How many GPUs and nodes a deployment takes, also while it is updated; and the rules of that.

Numbers of GPUs are powers of two here, and so are those of nodes: pods that are packed well leave no gap,
and n GPUs need ceil(n / GPUs per node) nodes. A Deployment is updated by its default strategy: up to a
quarter more pods, rounded up, and up to a quarter fewer, rounded down. With fewer than four replicas no pod
ends before a new one is ready, so that the update needs room for one more.
Not guaranteed: that the scheduler packs well. It prefers empty nodes where nothing tells it otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from staging.layout.gpus import Instance
from staging.values.deployment import Deployment, Model
from staging.values.finding import Facts, Found, Rule, rule

_NEVER_FEWER: Final = 4  # replicas below which a quarter, rounded down, is none
_STRATEGY: Final = "Kubernetes, Deployments: max surge and max unavailable, 25% each"


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a deployment takes of nodes of one type.

    `nodes` is the number that is enough when pods are packed well, `free` the GPUs that are then left.
    `updatable_nodes` is enough for updates too, one model at a time. `unknown` are models whose GPUs or
    replicas cannot be read; they are not counted.
    """

    instance: Instance
    gpus: int
    pods: int
    nodes: int
    free: int
    updatable_nodes: int
    unknown: tuple[str, ...]


def reckon(deployment: Deployment, instance: Instance) -> Capacity:
    """Reckon what a deployment takes."""
    known = [model for model in deployment.models if model.total_gpus is not None]
    total = sum(model.total_gpus or 0 for model in known)
    surge = max((_surge(model) for model in known), default=0)
    nodes = -(-total // instance.gpus)
    return Capacity(
        instance,
        total,
        sum(model.replicas or 0 for model in known),
        nodes,
        nodes * instance.gpus - total,
        -(-(total + surge) // instance.gpus),
        tuple(model.key for model in deployment.models if model.total_gpus is None),
    )


def in_words(capacity: Capacity) -> Iterator[str]:
    """What a deployment takes, for people."""
    instance = capacity.instance
    yield (
        f"{_count(capacity.gpus, 'GPU')} in {_count(capacity.pods, 'pod')}:"
        f" {_count(capacity.nodes, 'node')} of {instance.name} ({instance.gpus} {instance.gpu.name})"
        f" when packed well, {_count(capacity.free, 'GPU')} left"
    )
    if capacity.updatable_nodes > capacity.nodes:
        nodes = _count(capacity.updatable_nodes, "node")
        yield f"an update starts a new pod before the old one ends: that takes {nodes}"
    if capacity.unknown:
        yield f"not counted, for their numbers cannot be read: {', '.join(capacity.unknown)}"


@rule(
    "gpus-exceed-node",
    "error",
    reason="a pod gets its GPUs from one node",
    fix="use fewer GPUs per replica, or a larger type of node (--instance)",
    source="Install on Amazon EKS, Troubleshooting: a model pod is Pending",
)
def gpus_exceed_node(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """More GPUs than any node has: the pod would be pending for ever."""
    for model in deployment.models:
        if model.gpus is not None and model.gpus > facts.instance.gpus:
            message = f"{model.gpus} GPUs, and a {facts.instance.name} has {facts.instance.gpus}"
            place = model.entry.at("gpus") or model.entry
            yield Found(place=place, message=message, model=model.key)


@rule(
    "nodes-too-few",
    "error",
    reason="all replicas of all models fit on the nodes (with --nodes)",
    fix="add nodes, or reduce replicas or gpus",
    source="Install on Amazon EKS, Troubleshooting: a model pod is Pending",
)
def nodes_too_few(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """More GPUs in all than the nodes have."""
    needed = reckon(deployment, facts.instance)
    if facts.nodes is not None and needed.nodes > facts.nodes:
        have = facts.nodes * facts.instance.gpus
        message = (
            f"{needed.gpus} GPUs in all, and {_count(facts.nodes, 'node')} of {facts.instance.name}"
            f" {'has' if facts.nodes == 1 else 'have'} {have}: it takes {_count(needed.nodes, 'node')}"
        )
        place = deployment.values.at(*deployment.models_path) or deployment.values
        yield Found(place=place, message=message)


@rule(
    "update-blocked",
    "warning",
    reason="an update has room for one pod more (with --nodes)",
    fix="keep that many GPUs free on one node, or scale the model down before its update",
    source=_STRATEGY,
)
def update_blocked(deployment: Deployment, facts: Facts) -> Iterator[Found]:
    """A new pod that waits for GPUs which the old one has."""
    needed = reckon(deployment, facts.instance)
    if facts.nodes is None or needed.nodes > facts.nodes:
        return
    free = facts.nodes * facts.instance.gpus - needed.gpus
    for model in deployment.models:
        if facts.instance.gpus >= (model.gpus or 0) and _surge(model) > free:
            message = (
                f"an update starts a new pod with {_count(model.gpus or 0, 'GPU')} before the old one ends;"
                f" at best {free} {'is' if free == 1 else 'are'} free"
            )
            place = model.entry.at("gpus") or model.entry
            yield Found(place=place, message=message, model=model.key)


def _surge(model: Model) -> int:
    """GPUs that an update of a model needs beside those that it has."""
    if model.gpus is None or model.replicas is None or not 0 < model.replicas < _NEVER_FEWER:
        return 0
    return model.gpus


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


RULES: Final[tuple[Rule, ...]] = (gpus_exceed_node, nodes_too_few, update_blocked)
