"""What `swarm-hpc certs` makes and shows."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography import x509

from swarm_hpc.errors import CertificateExpired, CertificateMissing, CertificateUntrusted, ConfigError, WrongSite
from swarm_hpc.identity import ca, certs
from swarm_hpc.identity.bundle import TrustBundle
from swarm_hpc.records import NodeName

NODE = NodeName.parse("alpha/sl/sl-1")


def test_keys_are_readable_by_their_owner_only(sites):
    config = sites.config("alpha/sl/sl-1")
    for key in (Path(config.key), sites.folder / "alpha" / "ca-key.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_an_existing_ca_is_never_overwritten(sites):
    key = sites.folder / "alpha" / "ca-key.pem"
    before = key.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        ca.create_ca("alpha", "swarm.test", sites.folder / "alpha")
    assert key.read_bytes() == before


def test_a_ca_refuses_to_issue_for_another_site(sites, tmp_path):
    with pytest.raises(WrongSite, match="is the CA of site beta; alpha/sl/sl-1 needs the CA of site alpha"):
        ca.issue(sites.folder / "beta", NODE, tmp_path)


def test_a_folder_without_ca_is_named_with_the_remedy(tmp_path):
    with pytest.raises(CertificateMissing, match=r"ca\.pem: no such file; make a CA with `swarm-hpc certs ca"):
        ca.issue(tmp_path, NODE, tmp_path)


def test_a_certificate_issued_again_replaces_the_old_one_and_its_key(sites):
    config = sites.config("alpha/sl/sl-1")
    before = Path(config.cert).read_bytes()
    again = sites.config("alpha/sl/sl-1")
    assert again == config
    assert Path(again.cert).read_bytes() != before
    assert certs.load(again).name == NODE


def test_a_certificate_does_not_outlive_its_ca(tmp_path):
    ca.create_ca("alpha", "swarm.test", tmp_path / "ca", days=3)
    cert, _ = ca.issue(tmp_path / "ca", NODE, tmp_path, days=365)
    (row,) = ca.describe(cert)
    assert row.valid_to == ca.describe(tmp_path / "ca" / "ca.pem")[0].valid_to


@pytest.mark.parametrize("days", [-5, 0, 10_000_000])
def test_days_that_no_certificate_can_have_are_told(sites, tmp_path, days):
    with pytest.raises(ConfigError, match=f"days: {days} must be from 1 to "):
        ca.create_ca("alpha", "swarm.test", tmp_path / "ca", days=days)
    assert not (tmp_path / "ca").exists()
    with pytest.raises(ConfigError, match=f"days: {days} must be from 1 to "):
        ca.issue(sites.folder / "alpha", NODE, tmp_path, days=days)


def test_a_ca_that_has_expired_is_named_with_the_remedy(sites, tmp_path, monkeypatch):
    ca.create_ca("alpha", "swarm.test", tmp_path / "ca", days=3)
    later = datetime.now(UTC) + timedelta(days=4)
    monkeypatch.setattr(ca, "datetime", SimpleNamespace(now=lambda _: later))
    with pytest.raises(CertificateExpired, match=r"ca/ca\.pem: the CA has expired on .*; make a new one with"):
        ca.issue(tmp_path / "ca", NODE, tmp_path)


def test_describe_shows_names_and_site_of_a_certificate(sites):
    config = sites.config("alpha/sl/sl-1", dns=["gpu1.alpha.example"])
    (row,) = ca.describe(Path(config.cert))
    assert row.names == ("spiffe://swarm.test/alpha/sl/sl-1", "gpu1.alpha.example")
    assert (row.site, row.subject, row.issuer) == ("alpha", "CN=alpha/sl/sl-1,O=alpha", "CN=alpha CA,O=alpha")


def test_describe_lists_the_cas_of_a_bundle_under_their_sites(sites):
    rows = ca.describe(sites.bundle_file)
    assert [row.site for row in rows] == ["alpha", "beta"]
    assert rows[0].fingerprint == TrustBundle.load(sites.bundle_file).fingerprint("alpha")


def test_describe_refuses_a_key_and_shows_nothing_of_it(sites):
    config = sites.config("alpha/sl/sl-1")
    with pytest.raises(CertificateMissing, match="holds a private key") as caught:
        ca.describe(Path(config.key))
    assert Path(config.key).read_text().splitlines()[1] not in str(caught.value)


def test_a_bundle_takes_no_node_certificate_for_a_ca(sites, tmp_path):
    config = sites.config("alpha/sl/sl-1")
    with pytest.raises(CertificateUntrusted, match="is no CA certificate"):
        ca.write_bundle({"alpha": Path(config.cert)}, "swarm.test", tmp_path / "b.json")


def test_a_bundle_takes_no_ca_under_another_sites_name(sites, tmp_path):
    with pytest.raises(WrongSite, match="is the CA of site beta, not of alpha"):
        ca.write_bundle({"alpha": sites.cas["beta"]}, "swarm.test", tmp_path / "b.json")


def test_long_names_still_make_valid_certificates(tmp_path):
    site = "s" * 63
    pem = ca.create_ca(site, "swarm.test", tmp_path / "ca")
    name = NodeName.parse(f"{site}/license/{'n' * 63}")
    cert, _ = ca.issue(tmp_path / "ca", name, tmp_path)
    assert (
        x509.load_pem_x509_certificate(cert.read_bytes()).issuer
        == x509.load_pem_x509_certificate(pem.read_bytes()).subject
    )
    assert ca.describe(cert)[0].names == (f"spiffe://swarm.test/{name}",)
