"""The interval between merges, from the losses of the merged models."""

import math

import pytest

from swarm_hpc.ml.adaptive import next_interval


def run(losses, sync_frequency=8):
    """The interval after each of these losses."""
    interval, intervals = sync_frequency, []
    for count in range(1, len(losses) + 1):
        interval = next_interval(interval, sync_frequency, losses[:count])
        intervals.append(interval)
    return intervals


def test_while_the_loss_falls_the_interval_stays():
    assert run([1.0, 0.8, 0.6, 0.5]) == [8, 8, 8, 8]


def test_a_worse_loss_halves_the_interval_down_to_a_quarter():
    assert run([1.0, 1.2, 1.5, 2.0, 3.0]) == [8, 4, 2, 2, 2]


def test_when_merging_no_longer_helps_the_interval_grows_up_to_four_times():
    assert run([0.5] * 9) == [8, 8, 12, 18, 27, 32, 32, 32, 32]


def test_one_merge_without_gain_is_not_yet_a_reason():
    assert run([1.0, 0.5, 0.5, 0.4]) == [8, 8, 8, 8]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_halves_the_interval_and_is_then_forgotten(loss):
    assert run([1.0, loss, 0.9, 0.7]) == [8, 4, 4, 4]


def test_the_interval_is_never_below_one_batch_and_can_grow_from_there():
    assert run([1.0, 2.0, 4.0], sync_frequency=1) == [1, 1, 1]
    assert run([1.0, 1.0, 1.0, 1.0], sync_frequency=1) == [1, 1, 2, 3]


def test_equal_losses_give_equal_intervals_everywhere():
    losses = [1.0, 0.9, 0.95, 0.95, 0.95, 0.2]
    assert run(losses) == run(list(losses))


def test_without_any_loss_the_interval_stays():
    assert next_interval(6, 8, []) == 6
