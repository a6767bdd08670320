"""Two and three sites: the senior one carries enough that any other one may be away, and its own absence halts them."""

from __future__ import annotations

import pytest

from tests.system.geth.conftest import trained

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(600)]


def test_three_sites_go_on_without_any_but_the_founder_and_say_that_it_is_missing(consortium_of):
    net = consortium_of("alpha beta gamma")
    assert net.powers("alpha") == {"alpha": 20, "beta": 10, "gamma": 10}
    with trained(net) as load:
        net.kill("gamma", back=False)
        load.await_rounds(2)
        net.launch("gamma")
        net.await_whole()
        load.await_part("gamma")

        net.kill("alpha", back=False)
        net.until(
            lambda: (seen := net.consensus("beta")) and "missing: alpha" in seen.halted,
            "beta to say that the founder is missing",
        )
        net.until(lambda: "missing: alpha" in load.reason("gamma"), "gamma's node to say so, too")
        height = net.consensus("beta").height
        net.linger(3.0)
        assert net.consensus("beta").height == height

        net.launch("alpha")
        net.await_whole()
        load.await_part(*net.names)


def test_the_founder_goes_on_alone_while_the_only_other_site_is_down(consortium_of):
    net = consortium_of("alpha beta")
    assert net.powers("beta") == {"alpha": 30, "beta": 10}
    with trained(net, min_peers=1) as load:
        net.kill("beta", back=False)
        load.await_rounds(2)
        assert not net.consensus("alpha").halted
        net.launch("beta")
        net.await_whole()
        load.await_part("beta")
