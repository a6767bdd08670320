"""Where a site's SN is."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from swarm_hpc.config import IdentityConfig, SiteConfig
from swarm_hpc.errors import ConfigError, NotReachable
from swarm_hpc.slurm.endpoint import find_sn


def site(**where: str) -> SiteConfig:
    return SiteConfig(name="alpha", identity=IdentityConfig(cert="c", key="k", bundle="b"), **where)


def test_the_profile_may_say_it() -> None:
    assert find_sn(site(sn="sn.alpha.example:30304"), timeout_s=0) == "sn.alpha.example:30304"


@pytest.mark.slow
def test_the_sns_own_file_is_waited_for(tmp_path: Path) -> None:
    file, beside = tmp_path / "endpoint.json", tmp_path / "beside"
    beside.write_text(json.dumps({"address": "node7:30304", "site": "alpha", "pid": 1}))
    later = threading.Timer(0.2, beside.rename, [file])
    later.start()
    assert find_sn(site(sn_file=str(file)), timeout_s=30) == "node7:30304"
    later.join()


def test_an_sn_that_does_not_come_is_an_error_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NotReachable, match=r"no SN of site alpha runs: .*endpoint\.json.*sbatch sbatch/sn\.sbatch"):
        find_sn(site(sn_file=str(tmp_path / "endpoint.json")), timeout_s=0)


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError, match=r"site\.sn_file: .* is not the endpoint\.json"):
        find_sn(site(sn_file=str(tmp_path / "x.json")), timeout_s=0)
