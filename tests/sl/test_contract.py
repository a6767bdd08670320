"""What a node asks of its training contract, and how it is told what differs."""

from dataclasses import replace

import pytest

from swarm_hpc.config import IdentityConfig, MergeConfig, ProgramConfig, RoundConfig, SlConfig
from swarm_hpc.errors import BlobCorrupt, ConfigError, ContractMismatch
from swarm_hpc.kernels.plan import MAX_HEADER_BYTES, TensorSpec, place
from swarm_hpc.records import ContractState, Merge, MergeMethod, Platform, TrainingContract
from swarm_hpc.sl.contract import enter, settle, specify
from swarm_hpc.sl.frames import OpenRequest

LAYOUT = place([TensorSpec("weight", "F32", (3,))])
REQUEST = OpenRequest(platform=Platform.PYTORCH, tensors=())


def settings(**merge):
    return SlConfig(
        name="alpha/sl/sl-1",
        sn="localhost:1",
        state_dir="unused",
        identity=IdentityConfig(cert="c", key="k", bundle="b"),
        merge=MergeConfig(**merge),
        round=RoundConfig(contract="digits", min_peers=4),
        program=ProgramConfig(command=[]),
    )


class OneContract:
    """An SN whose ledger has that contract, and refuses every other one of the name."""

    def __init__(self, spec):
        self.found = TrainingContract(spec=spec, state=ContractState.TRAINING, round=1, created_at=0, participants=())

    async def create_contract(self, spec):
        raise ContractMismatch("merge")

    async def contract(self, name):
        return self.found


def test_the_program_chooses_the_method_and_the_settings_its_parameters():
    config = settings(method=MergeMethod.MEAN, trim=0.3)
    assert specify(settle(config, REQUEST), Platform.PYTORCH, LAYOUT).merge == Merge()
    chosen = settle(config, replace(REQUEST, merge_method=MergeMethod.TRIMMEDMEAN))
    wanted = Merge(method=MergeMethod.TRIMMEDMEAN, trim=0.3)
    assert specify(chosen, Platform.PYTORCH, LAYOUT).merge == wanted


def test_rounds_of_fewer_peers_than_the_method_takes_are_refused_at_open():
    config = settings(method=MergeMethod.KRUM)
    assert settle(config, REQUEST).round.min_peers == 4
    with pytest.raises(ConfigError, match=r"round\.min_peers: 3 nodes are too few .* num_byzantine=1: it takes 4"):
        settle(config, replace(REQUEST, min_peers=3))


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"method": MergeMethod.KRUM}, {}, r"merge\.method mean; this node asks for krum; use mean"),
        (
            {"method": MergeMethod.TRIMMEDMEAN, "trim": 0.2},
            {"method": MergeMethod.TRIMMEDMEAN},
            r"merge\.trim 0\.1; this node asks for 0\.2",
        ),
    ],
)
async def test_the_very_parameter_that_differs_is_named(ours, theirs, message):
    theirs, ours = (specify(settings(**merge), Platform.PYTORCH, LAYOUT) for merge in (theirs, ours))
    with pytest.raises(ContractMismatch, match=f"digits has {message}"):
        await enter(OneContract(theirs), None, ours, LAYOUT)


async def test_a_contracts_model_that_is_larger_than_any_header_is_not_fetched():
    class TooLarge(OneContract):
        async def download(self, blob, *, max_bytes):
            assert (blob, max_bytes) == (theirs.model, MAX_HEADER_BYTES)
            raise BlobCorrupt("too large")

    ours = specify(settings(), Platform.PYTORCH, LAYOUT)
    theirs = replace(ours, model="0" * 64)
    with pytest.raises(BlobCorrupt, match="too large"):
        await enter(TooLarge(theirs), None, ours, LAYOUT)
