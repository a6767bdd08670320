"""How a node enters a training contract: settings and model compared, and the difference named."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from swarm_hpc.config import SlConfig, enough_peers
from swarm_hpc.errors import ContractMismatch, ImageRefused, ModelMismatch, NotFound, TrainingOver
from swarm_hpc.kernels.plan import MAX_HEADER_BYTES, Layout, check_same, model_hash, parse
from swarm_hpc.records import ContractSpec, ContractState, Platform, TrainingContract
from swarm_hpc.sl.frames import OpenRequest
from swarm_hpc.sl.member import Member
from swarm_hpc.sn.client import SnClient

_NOT_SETTINGS: Final = ("name", "model")
"""What a contract is found by, and what is compared tensor by tensor once the settings are the same."""


def settle(config: SlConfig, request: OpenRequest) -> SlConfig:
    """SL's settings with those that the program has a word in; ConfigError names the one that cannot be."""
    rules, merge = config.round, config.merge
    settled = replace(
        config,
        round=replace(
            rules,
            contract=rules.contract if request.contract is None else request.contract,
            min_peers=rules.min_peers if request.min_peers is None else request.min_peers,
        ),
        merge=replace(merge, method=merge.method if request.merge_method is None else request.merge_method),
        node_weight=config.node_weight if request.node_weight is None else request.node_weight,
    )
    enough_peers(settled.merge, settled.round)
    return settled


def specify(config: SlConfig, platform: Platform, layout: Layout) -> ContractSpec:
    """The contract that such settings, and a model of that layout, ask for.

    ImageRefused: the program runs in another image than they name.
    """
    wanted, own = config.round.image, config.job.image
    if wanted and own != wanted:
        text = f"in image {own}" if own else "in no container image with a digest"
        raise ImageRefused(
            f"training contract {config.round.contract} wants programs to run in image {wanted} (round.image), "
            f"this one runs {text}: set container=apptainer and container.image to the SIF file with that digest"
        )
    return ContractSpec(
        name=config.round.contract,
        platform=platform,
        merge=config.merge.agreed(),
        min_peers=config.round.min_peers,
        quorum_wait_s=config.round.quorum_wait_s,
        leader_timeout_s=config.round.leader_timeout_s,
        model=model_hash(layout),
        image=config.round.image,
    )


async def enter(
    sn: SnClient, member: Member, spec: ContractSpec, layout: Layout, *, goes_on: bool = False
) -> TrainingContract:
    """Create the contract or agree with the one that is there, and join it. May be repeated.

    ContractMismatch names the setting that differs, ModelMismatch the tensor; TrainingOver: the contract is completed,
    unless this is one of its participants, whose program `goes_on`: the others may end while its job is in the queue.
    """
    try:
        found = await sn.create_contract(spec)
        if found.state is ContractState.COMPLETED:
            if goes_on and any(each.node == member.name for each in found.participants):
                return found
            raise TrainingOver(f"training contract {spec.name} is completed; choose another name (round.contract)")
        # before joining: whoever comes later with another model compares with it
        await sn.upload(spec.model, memoryview(layout.header), spec.name)
        return await join(sn, member, spec)
    except (ContractMismatch, ModelMismatch):
        await _name_difference(sn, spec, layout)
        raise


async def join(sn: SnClient, member: Member, spec: ContractSpec) -> TrainingContract:
    """Take part, or take part again after having been away."""
    return await member.call(lambda i: sn.join(spec.name, member.name, i, spec.platform, spec.model))


async def _name_difference(sn: SnClient, spec: ContractSpec, layout: Layout) -> None:
    try:
        theirs = (await sn.contract(spec.name)).spec
    except NotFound:
        return
    asked = spec.settings()
    for setting, value in theirs.settings().items():
        if setting not in _NOT_SETTINGS and asked[setting] != value:
            raise ContractMismatch(_explain(spec.name, setting, asked[setting], value))
    if spec.model != theirs.model:
        header = await sn.download(theirs.model, max_bytes=MAX_HEADER_BYTES)
        assert header is not None, "a download without a target returns the bytes"
        check_same(layout, parse(header), f"training contract {spec.name}")


def _explain(contract: str, setting: str, ours: object, theirs: object) -> str:
    if setting == "platform":
        return (
            f"training contract {contract} is for {theirs}; this node runs {ours}; "
            f"choose another contract name, or run a {theirs} program"
        )
    return (
        f"training contract {contract} has {setting} {theirs}; this node asks for {ours}; "
        f"use {theirs}, or choose another contract name"
    )
