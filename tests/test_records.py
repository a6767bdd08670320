"""How a merge is written on the ledger, and read again."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError, ProtocolError
from swarm_hpc.records import MERGE_PARAMETERS, Merge, MergeMethod, MergePlan, decode, encode

MERGES = st.builds(
    Merge,
    method=st.sampled_from(MergeMethod),
    trim=st.floats(0, 0.5, exclude_max=True),
    num_byzantine=st.integers(0, 256),
    num_selected=st.integers(0, 256),
    clip_radius=st.floats(0, exclude_min=True, allow_infinity=False),
    clip_iterations=st.integers(1, 1000),
)


@pytest.mark.parametrize(
    ("merge", "text"),
    [
        (Merge(), "mean"),
        (Merge(method=MergeMethod.GEOMEDIAN, trim=0.3), "geomedian"),
        (Merge(method=MergeMethod.TRIMMEDMEAN, trim=0.2), "trimmedmean trim=0.2"),
        (Merge(method=MergeMethod.TRIMMEDMEAN, trim=0), "trimmedmean trim=0.0"),
        (Merge(method=MergeMethod.KRUM), "krum num_byzantine=1"),
        (Merge(method=MergeMethod.MULTIKRUM, num_selected=3), "multikrum num_byzantine=1 num_selected=3"),
        (Merge(method=MergeMethod.CENTREDCLIP), "centredclip clip_radius=1.0 clip_iterations=5"),
        (Merge(plan=MergePlan.SHARDED), "mean plan=sharded"),
        (Merge(method=MergeMethod.KRUM, plan=MergePlan.SHARDED), "krum num_byzantine=1 plan=sharded"),
    ],
)
def test_a_merge_is_written_with_the_parameters_that_its_method_takes(merge, text):
    assert str(merge) == text
    assert Merge.parse(text) == merge.agreed()


@given(MERGES)
def test_every_merge_is_read_as_it_was_written_and_fits_on_the_ledger(merge):
    text = str(merge)
    assert len(text) <= 96
    read = Merge.parse(text)
    assert (str(read), read) == (text, merge.agreed())
    for name in ("method", *MERGE_PARAMETERS[merge.method]):
        assert getattr(read, name) == getattr(merge, name)
    assert decode(Merge, encode(merge)) == merge


@pytest.mark.parametrize(
    "text",
    [
        "",
        "median",
        "Mean",
        " mean",
        "mean ",
        "mean trim=0.1",
        "mean wire=full",
        "trimmedmean",
        "trimmedmean trim=0.10",
        "trimmedmean trim=.1",
        "trimmedmean trim=0.5",
        "trimmedmean trim=nan",
        "trimmedmean trim=-0.0",
        "trimmedmean trim=0.1 trim=0.1",
        "trimmedmean trim=0.1 method=mean",
        "krum num_byzantine=01",
        "krum num_byzantine=1.0",
        "krum num_byzantine=-1",
        "multikrum num_selected=0 num_byzantine=1",
        "centredclip clip_radius=inf clip_iterations=5",
        "centredclip clip_radius=1.0",
    ],
)
def test_what_is_written_otherwise_is_refused(text):
    with pytest.raises(ProtocolError, match=r"[Mm]erge"):
        Merge.parse(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trim", 0.5),
        ("trim", -0.1),
        ("trim", float("nan")),
        ("num_byzantine", -1),
        ("num_byzantine", 257),
        ("num_selected", -1),
        ("clip_radius", 0.0),
        ("clip_radius", float("inf")),
        ("clip_iterations", 0),
        ("clip_iterations", 1001),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"^{field}: "):
        Merge(**{field: value})


def test_krum_takes_three_peers_more_than_may_be_byzantine_and_at_least_the_selected():
    assert Merge(method=MergeMethod.GEOMEDIAN, num_byzantine=5).least_peers == 1
    assert Merge(method=MergeMethod.KRUM, num_byzantine=2, num_selected=9).least_peers == 5
    assert Merge(method=MergeMethod.MULTIKRUM, num_byzantine=2).least_peers == 5
    assert Merge(method=MergeMethod.MULTIKRUM, num_byzantine=2, num_selected=9).least_peers == 9


def test_every_method_says_what_it_takes():
    assert set(MERGE_PARAMETERS) == set(MergeMethod)
    taken = [name for names in MERGE_PARAMETERS.values() for name in names]
    assert set(taken) == {one.name for one in fields(Merge)} - {"method", "plan", "wire", "whole_every"}
