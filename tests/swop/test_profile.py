"""SWOP profiles of HPE Swarm Learning: every field works, is noted, or is refused with its place."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError, SwarmError
from swarm_hpc.swop.options import ALL
from swarm_hpc.swop.profile import IdentityKind, Place, parse_profile, read_profile

DATA = Path(__file__).parent / "data"
ONE_HOST = (DATA / "profile-one-host.yaml").read_text()
SPIRE = (DATA / "profile-spire.yaml").read_text()


def changed(text, old, new):
    assert old in text
    return parse_profile(text.replace(old, new), "p.yaml", Path("/site"))


def test_a_profile_with_files_as_identity():
    profile = read_profile(DATA / "profile-one-host.yaml")
    assert (profile.groupname, profile.taskrunner) == ("demogroup", "defaulttaskbb.taskdb.sml.hpe")
    assert (profile.sn.host, profile.sn.port, profile.sn.service) == ("172.1.1.1", 30304, "")
    assert (profile.license.host, profile.license.port) == ("172.1.1.1", 5000)
    assert profile.env == {"http_proxy": "", "https_proxy": "", "no_proxy": "", "SL_LOG_LEVEL": "INFO"}
    first, second = profile.nodes
    assert first.identity[IdentityKind.CERT] == Place("/site/certs/sl-1-cert.pem")
    assert first.identity[IdentityKind.CAPATH].resolve(Path("/volumes")) == Path("/volumes/ca-folder/capath")
    assert (first.sl_host, first.sl_ip, first.sl_port, first.user_host) == ("sl-1", "sl-1", 30305, "user-1")
    assert first.private_data == Place("/site/data/one")
    assert first.sl_labels == {"swarm.node": "", "team": "blue"}
    assert first.options.num_gpus == 2
    assert (second.index, second.sl_host, second.private_data) == (1, "", None)
    assert second.options.num_gpus == ALL


def test_a_key_that_is_there_twice_counts_the_last_time():
    profile = read_profile(DATA / "profile-one-host.yaml")
    assert profile.nodes[0].sl_env["SL_RAM_INTENSIVE"] == "False"
    assert any("slenvvars is there twice" in note for note in profile.notes)


def test_the_site_s_own_variables_count_more():
    profile = read_profile(DATA / "profile-one-host.yaml")
    assert profile.sl_env(profile.nodes[0])["SL_LOG_LEVEL"] == "INFO"
    assert profile.program_env(profile.nodes[0], {"MAX_EPOCHS": "99", "X": "1"})["MAX_EPOCHS"] == "16"


def test_a_profile_with_spire_and_gpus_of_amd():
    profile = read_profile(DATA / "profile-spire.yaml")
    assert profile.sn.service == "api.swarm.example.org:443"
    assert profile.nodes[0].identity == {IdentityKind.SPIFFE_SOCKETPATH: Place("spire-socket", is_volume=True)}
    assert profile.nodes[1].identity == {IdentityKind.SPIFFE_SOCKETPATH: Place("/run/spire/agent.sock")}
    assert profile.nodes[0].options.num_gpus == ALL
    assert [node.user_host for node in profile.nodes] == ["user1", "user1"]


@pytest.mark.parametrize("name", ["one-host", "spire"])
def test_all_gpus_are_said_to_be_as_many_as_the_site_asks_slurm_for(name):
    notes = read_profile(DATA / f"profile-{name}.yaml").notes
    assert sum("all are as many as site.gpus_per_task says" in note for note in notes) == 1


@pytest.mark.parametrize("key", ["resourcemgr", "network", "ipc", "cap-add", "security-opt", "privileged", "group-add"])
def test_what_means_nothing_here_is_noted_once(key):
    notes = [note for note in read_profile(DATA / "profile-spire.yaml").notes if key in note.partition(": ")[0]]
    assert len(notes) == 1


def test_a_placeholder_that_is_still_there_is_noted():
    notes = read_profile(DATA / "profile-spire.yaml").notes
    assert any("slhostip: <HOST_ADDRESS> is still to be filled in" in note for note in notes)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("groupname:", "groupnme:", r"p.yaml:2: groupnme: there is no such key.*did you mean groupname\?"),
        ("usrenvvars :", "userenvvars :", r"userenvvars: there is no such key.*did you mean usrenvvars\?"),
        ("idx : 1", "idx : 0", "idx 0 already"),
        ("idx : 1", "idx : -1", "no whole number"),
        ("port : 30304", "port : 99999", "1 to 65535"),
        ("aType : CAPATH", "aType : CERT", "CERT is there already"),
        ("aType : CAPATH", "aType : CERTS", r"did you mean CERT\?"),
        ('subPath : "sl-1-cert.pem"', "subPath : ../../x", "would lead out"),
        ("src : ca-folder", "src : ../ca", "name of a volume"),
        ("mgrtype : DOCKER", "mgrtype : K8S", "none of DOCKER, SLURM"),
        ('gpus : "device=3,5"', "gpus : some", 'write "all"'),
        ("ipc : host", "device : /dev/sda", "no other device"),
        ("ipc : host", "shmsize : 8g", r"did you mean shm-size\?"),
        ("ip : 172.1.1.9", "driver : x", "known: ip"),
        ("policyuri: ~", "policyuri: none.yaml", "/site/none.yaml: cannot be read"),
        ("policyuri: ~", "policyuri: http://x/y", "file:///path"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(old, new, reason):
    with pytest.raises(ConfigError, match=reason):
        changed(ONE_HOST, old, new)


def test_an_sl_without_an_identity_is_refused():
    with pytest.raises(ConfigError, match="KEY and CERT with CACERT or CAPATH, or SPIFFE_SOCKETPATH"):
        changed(ONE_HOST, "aType : KEY", "aType : CACERT")


def test_a_relative_path_starts_at_the_profile(tmp_path):
    profile = changed(ONE_HOST, "/site/data/one", "data/one")
    assert profile.nodes[0].private_data == Place("/site/data/one")


def test_a_policy_is_read_from_beside(tmp_path):
    (tmp_path / "policy.yaml").write_text("types: [RUN_SWARM]\nmax_nodes: 1\n")
    (tmp_path / "p.yaml").write_text(ONE_HOST.replace("policyuri: ~", "policyuri: policy.yaml"))
    policy = read_profile(tmp_path / "p.yaml").policy
    assert policy.nodes(2) == 1


@pytest.mark.slow
@given(st.data())
def test_a_damaged_profile_is_read_or_refused_and_nothing_else(data):
    text = data.draw(st.sampled_from([SPIRE]))
    at = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(at, min(len(text), at + 40)))
    with contextlib.suppress(SwarmError):
        parse_profile(text[:at] + data.draw(st.text(max_size=8)) + text[end:], "p.yaml", Path("/site"))
