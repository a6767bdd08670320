"""Replay of rounds: what fits, what was changed, what was not kept."""

from dataclasses import replace

import numpy as np
import pytest

from swarm_hpc.errors import BlobNotFound
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec, model_hash, place
from swarm_hpc.records import CheckIn, ContractSpec, Merge, Platform, RoundState, Wire
from swarm_hpc.sl.merge import merge_blobs
from swarm_hpc.sl.models import Forms
from swarm_hpc.sl.verify import verify_rounds
from swarm_hpc.transport.blobs import hash_bytes
from tests.lab import rounds

LAYOUT = place([TensorSpec("weight", "F32", (4,))])
SPEC = ContractSpec(
    name="digits",
    platform=Platform.PYTORCH,
    merge=Merge(),
    min_peers=1,
    quorum_wait_s=1,
    leader_timeout_s=1,
    model=model_hash(LAYOUT),
)


class Kept(dict):
    """Blobs by hash."""

    def add(self, data):
        name = hash_bytes(data)
        self[name] = bytearray(data)
        return name

    def read(self, blob):
        if blob not in self:
            raise BlobNotFound(f"blob {blob} was not kept")
        return self[blob]


def blob(value):
    with Arena.create(LAYOUT) as arena:
        arena.array("weight")[:] = np.float32(value)
        return bytes(arena.buffer)


@pytest.fixture
def kept():
    kept = Kept()
    kept.add(LAYOUT.header)
    return kept


def published(kept, number, *values, state=RoundState.PUBLISHED):
    check_ins = tuple(CheckIn(node=f"s{i}/sl/sl", blob=kept.add(blob(v)), weight=1) for i, v in enumerate(values))
    out = bytearray(LAYOUT.size_bytes)
    merge_blobs(LAYOUT, Merge(), check_ins, kept, memoryview(out))
    return rounds.published(number, kept.add(out), state=state, check_ins=check_ins, leader="s0/sl/sl", min_peers=1)


def verify(kept, *history):
    return verify_rounds(SPEC, history, kept.read)


def test_rounds_that_fit_are_counted_and_unpublished_ones_left_out(kept):
    first, second = published(kept, 1, 1.0, 2.0), published(kept, 2, 3.0, 5.0)
    report = verify(kept, first, second, published(kept, 3, 7.0, state=RoundState.OPEN))
    assert (report.rounds_checked, report.mismatches, report.skipped) == (2, (), ())


@pytest.mark.parametrize("place_of_change", [-1, 0, len(LAYOUT.header) + 1])
def test_one_changed_byte_of_a_check_in_names_round_and_node(kept, place_of_change):
    first, second = published(kept, 1, 1.0, 2.0), published(kept, 2, 3.0, 5.0)
    kept[second.check_ins[1].blob][place_of_change] ^= 1
    [mismatch] = verify(kept, first, second).mismatches
    assert (mismatch.round, mismatch.node) == (2, "s1/sl/sl") and "was changed" in str(mismatch)


def test_one_changed_byte_of_a_result_names_the_round(kept):
    first = published(kept, 1, 1.0, 2.0)
    kept[first.merged][-1] ^= 1
    [mismatch] = verify(kept, first).mismatches
    assert mismatch.round == 1 and "was changed" in mismatch.reason


def test_a_leader_that_published_something_else_is_named(kept):
    first, other = published(kept, 1, 1.0, 2.0), published(kept, 1, 1.0, 9.0)
    forged = replace(first, merged=other.merged)
    [mismatch] = verify(kept, forged).mismatches
    assert mismatch.node == "s0/sl/sl" and first.merged in mismatch.reason


@pytest.mark.parametrize("which", ["check-in", "merged"])
def test_a_round_with_a_blob_that_is_gone_is_skipped_with_the_reason(kept, which):
    first, second = published(kept, 1, 1.0, 2.0), published(kept, 2, 3.0, 5.0)
    del kept[first.check_ins[0].blob if which == "check-in" else first.merged]
    report = verify(kept, first, second)
    assert (report.rounds_checked, report.mismatches) == (1, ())
    [skipped] = report.skipped
    assert skipped.round == 1 and "not kept" in skipped.reason


def test_a_forged_result_is_found_without_its_blob(kept):
    first, other = published(kept, 1, 1.0, 2.0), published(kept, 1, 1.0, 9.0)
    forged = replace(first, merged=other.merged)
    del kept[other.merged]
    report = verify(kept, forged)
    assert [mismatch.node for mismatch in report.mismatches] == ["s0/sl/sl"]


def test_a_damaged_blob_counts_also_where_another_of_its_round_is_gone(kept):
    first = published(kept, 1, 1.0, 2.0)
    kept[first.check_ins[1].blob][-1] ^= 1
    del kept[first.check_ins[0].blob]
    report = verify(kept, first)
    assert [mismatch.node for mismatch in report.mismatches] == ["s1/sl/sl"]
    assert [skipped.round for skipped in report.skipped] == [1]


def test_a_damaged_layout_is_a_mismatch_of_round_1_and_all_else_is_checked_without_it(kept):
    first, second = published(kept, 1, 1.0, 2.0), published(kept, 2, 3.0, 5.0)
    kept[SPEC.model][-1] ^= 1
    report = verify(kept, first, second)
    assert report.rounds_checked == 2
    [mismatch] = report.mismatches
    assert mismatch.round == 1 and "the model layout is damaged" in mismatch.reason


def test_without_its_own_file_the_layout_comes_from_a_whole_check_in(kept):
    first, second = published(kept, 1, 1.0, 2.0), published(kept, 2, 3.0, 5.0)
    del kept[SPEC.model]
    kept[first.check_ins[0].blob][0] ^= 1
    report = verify(kept, first, second)
    assert [mismatch.node for mismatch in report.mismatches] == ["s0/sl/sl"]
    assert report.rounds_checked == 2


def test_the_blobs_of_an_open_round_must_be_whole_too(kept):
    open_round = published(kept, 1, 1.0, 2.0, state=RoundState.OPEN)
    kept[open_round.check_ins[0].blob][-1] ^= 1
    assert [mismatch.round for mismatch in verify(kept, open_round).mismatches] == [1]


def test_a_check_in_of_another_model_is_named(kept):
    first = published(kept, 1, 1.0, 2.0)
    other = place([TensorSpec("bias", "F32", (4,))])
    with Arena.create(other) as arena:
        stranger = replace(first.check_ins[1], blob=kept.add(bytes(arena.buffer)))
    [mismatch] = verify(kept, replace(first, check_ins=(first.check_ins[0], stranger))).mismatches
    assert mismatch.node == "s1/sl/sl" and "bias" in mismatch.reason


def difference(form):
    """One that is zero all over."""
    return form.layout.header + bytes(form.layout.size_bytes - len(form.layout.header))


def test_a_difference_for_a_result_that_is_whole_by_the_contract_names_its_leader(kept):
    spec = replace(SPEC, merge=Merge(wire=Wire.INT8))
    first = published(kept, 1, 1.0, 2.0)
    del kept[first.check_ins[0].blob]
    first = replace(first, merged=kept.add(difference(Forms(LAYOUT, spec.merge).result)))
    [mismatch] = verify_rounds(spec, [first], kept.read).mismatches
    assert mismatch.node == first.leader and mismatch.reason.startswith("the merged parameters")


def test_nobody_is_blamed_for_what_may_be_a_difference_where_no_layout_was_kept(kept):
    spec = replace(SPEC, merge=Merge(wire=Wire.INT8))
    first = published(kept, 1, 1.0, 2.0)
    small = kept.add(difference(Forms(LAYOUT, spec.merge).check_in))
    check_ins = tuple(replace(check_in, blob=small) for check_in in first.check_ins)
    for blob in (SPEC.model, first.merged):
        del kept[blob]
    report = verify_rounds(spec, [replace(first, check_ins=check_ins)], kept.read)
    assert not report.mismatches and report.rounds_checked == 0
    [skipped] = report.skipped
    assert "the model layout was not kept" in skipped.reason
