"""A site that stays away loses its voting power by a rule of the blocks, and gets it back when it returns."""

from __future__ import annotations

import pytest

from tests.system.geth.conftest import trained

pytestmark = [pytest.mark.geth, pytest.mark.system, pytest.mark.timeout(600)]


def test_the_quorum_shrinks_with_the_network_and_grows_again(consortium_of):
    net = consortium_of(jail_after_s=6)
    order = [site.name for site in net.status("alpha").sites]
    assert order[0] == "alpha"
    second, third, fourth = order[1:]

    def await_powers(**powers: int) -> None:
        # A site that CometBFT does not yet connect to may be jailed for a moment.
        net.until(lambda: net.powers("alpha") == powers, f"the voting power to be {powers}")

    await_powers(**dict.fromkeys(order, 10))
    with trained(net) as load:
        net.kill(fourth, back=False)
        await_powers(**{"alpha": 20, second: 10, third: 10, fourth: 0})
        load.await_rounds(1)  # CometBFT takes a change up two heights later
        net.kill(third, back=False)  # two of four: without the first jailing it would halt
        load.await_rounds(2)
        await_powers(**{"alpha": 30, second: 10, third: 0, fourth: 0})
        for site in (third, fourth):
            net.launch(site)
        net.await_whole()
        await_powers(**dict.fromkeys(order, 10))
        load.await_part(*net.names)
