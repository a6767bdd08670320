"""The arguments of SwarmCallback: each wrong one is named, with the remedy."""

import logging

import pytest

from swarm_hpc.errors import ConfigError
from swarm_hpc.ml.settings import Settings, check, socket_path
from swarm_hpc.records import FinishMode, MergeMethod


def test_what_is_not_said_is_left_to_the_sl_node():
    settings = check({"sync_frequency": 5})
    assert settings == Settings(sync_frequency=5)
    assert (settings.min_peers, settings.training_contract, settings.merge_method, settings.node_weight) == (None,) * 4
    assert settings.checkin_on_train_end is FinishMode.SNAPSHOT


def test_choices_are_taken_in_any_case():
    settings = check({"sync_frequency": 5, "merge_method": "CoordMedian", "checkin_on_train_end": "ACTIVE"})
    assert settings.merge_method is MergeMethod.COORDMEDIAN
    assert settings.checkin_on_train_end is FinishMode.ACTIVE


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "sync_frequency is missing"),
        ({"sync_frequency": None}, "sync_frequency is missing"),
        ({"sync_frequency": 0}, "sync_frequency: 0: .*1 or more"),
        ({"sync_frequency": True}, "sync_frequency: True"),
        ({"sync_frequency": 2.5}, "sync_frequency: 2.5"),
        ({"sync_frequenzy": 5}, "did you mean sync_frequency"),
        ({"sync_frequency": 5, "colour": 1}, "no argument 'colour': there are sync_frequency"),
        ({"sync_frequency": 5, "min_peers": 0}, "min_peers"),
        ({"sync_frequency": 5, "node_weight": 101}, "node_weight: 101: .*1 to 100"),
        ({"sync_frequency": 5, "total_epochs": -1}, "total_epochs"),
        ({"sync_frequency": 5, "ads_val_batch_size": 0}, "ads_val_batch_size"),
        ({"sync_frequency": 5, "training_contract": "a b"}, "training_contract: 'a b'"),
        ({"sync_frequency": 5, "training_contract": 7}, "training_contract: 7"),
        (
            {"sync_frequency": 5, "merge_method": "median"},
            "merge_method: 'median': choose mean, coordmedian",
        ),
        ({"sync_frequency": 5, "checkin_on_train_end": "off"}, "checkin_on_train_end: 'off': choose inactive"),
        ({"sync_frequency": 5, "use_adaptive_sync": "yes"}, "use_adaptive_sync: 'yes'"),
        ({"sync_frequency": 5, "use_adaptive_sync": True}, "needs ads_val_data"),
        ({"sync_frequency": 5, "logger": print}, "logger"),
    ],
)
def test_a_wrong_argument_is_named_with_its_remedy(arguments, text):
    with pytest.raises(ConfigError, match=text):
        check(arguments)


def test_validation_data_never_reaches_a_log():
    shown = repr(check({"sync_frequency": 5, "ads_val_data": ["a patient"], "logger": logging.getLogger("mine")}))
    assert "patient" not in shown
    assert "sync_frequency=5" in shown


@pytest.mark.parametrize("value", ["TRUE", "true", "True"])
def test_loopback_needs_no_sl_node(value):
    assert socket_path({"SWARM_LOOPBACK": value, "SWARM_SL_SOCKET": "/run/sl.sock"}) is None


@pytest.mark.parametrize("value", ["False", "", "false"])
def test_without_loopback_the_sl_node_is_where_the_environment_says(value):
    assert socket_path({"SWARM_LOOPBACK": value, "SWARM_SL_SOCKET": "/run/sl.sock"}) == "/run/sl.sock"


def test_neither_sl_node_nor_loopback_names_both_remedies():
    with pytest.raises(ConfigError, match=r"swarm-hpc sl.*SWARM_LOOPBACK=TRUE"):
        socket_path({})


def test_an_odd_loopback_is_refused():
    with pytest.raises(ConfigError, match="SWARM_LOOPBACK=perhaps: write TRUE or FALSE"):
        socket_path({"SWARM_LOOPBACK": "perhaps"})
