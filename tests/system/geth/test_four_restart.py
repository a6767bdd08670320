"""All sites stop and start again, in another order."""

import pytest

from tests.system.geth.conftest import trained

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(300)]


def test_after_a_full_stop_everything_is_there_and_goes_on_whatever_the_order(four):
    net = four
    with trained(net, contract="stopped") as load:
        load.await_rounds(2)
    results, sites = load.results("alpha"), net.status("alpha").sites

    net.stop("beta", "alpha")
    net.stop("delta", "gamma")
    for name in ("delta", "gamma", "beta", "alpha"):
        net.launch(name)
    net.await_whole()

    for name in net.names:
        assert {number: load.results(name)[number] for number in results} == results
    assert [site.name for site in net.status("delta").sites] == [site.name for site in sites]
    with trained(net, contract="stopped") as again:  # the same nodes take up the contract where it was
        again.await_rounds(2)
    assert min(number for number, _, _ in again.promises.results) > max(results)
