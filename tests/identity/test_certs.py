"""An identity is verified before anything starts: each fault is an error of its own, with the file and the remedy."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from swarm_hpc.errors import CertificateExpired, CertificateMissing, CertificateUntrusted, KeyMismatch, WrongSite
from swarm_hpc.identity import certs
from swarm_hpc.records import NodeName


def test_a_good_certificate_says_who_we_are(sites):
    identity = sites.identity("alpha/sl/sl-1")
    assert identity.name == NodeName.parse("alpha/sl/sl-1")
    assert identity.bundle.trust_domain == "swarm.test"
    assert "alpha/sl/sl-1" in repr(identity)


def test_a_missing_certificate_names_the_file_and_the_command(sites):
    config = replace(sites.config("alpha/sl/sl-1"), cert="nowhere.pem")
    with pytest.raises(CertificateMissing, match=r"certificate nowhere\.pem: No such file.*swarm-hpc certs issue"):
        certs.load(config)


def test_a_missing_key_names_the_file(sites):
    config = replace(sites.config("alpha/sl/sl-1"), key="nowhere.pem")
    with pytest.raises(CertificateMissing, match=r"private key nowhere\.pem"):
        certs.load(config)


def test_a_file_that_is_no_certificate_is_named(sites, tmp_path):
    (tmp_path / "odd.pem").write_text("hello")
    config = replace(sites.config("alpha/sl/sl-1"), cert=str(tmp_path / "odd.pem"))
    with pytest.raises(CertificateMissing, match=r"odd\.pem: holds no PEM certificate"):
        certs.load(config)


def test_an_expired_certificate_names_the_day_and_the_command(sites):
    config = sites.forged("alpha", uris=["spiffe://swarm.test/alpha/sl/sl-1"], days=(-9, -2))
    with pytest.raises(CertificateExpired, match=r"expired on .*swarm-hpc certs issue alpha/sl/sl-1 --ca"):
        certs.load(config)


def test_a_certificate_of_tomorrow_points_at_the_clock(sites):
    config = sites.forged("alpha", uris=["spiffe://swarm.test/alpha/sl/sl-1"], days=(1, 9))
    with pytest.raises(CertificateExpired, match=r"not valid before .*clock"):
        certs.load(config)


def test_a_key_of_another_certificate_is_a_mismatch(sites):
    config = replace(sites.config("alpha/sl/sl-1"), key=sites.config("alpha/sl/sl-2").key)
    with pytest.raises(KeyMismatch, match=r"sl-2-key\.pem: does not belong to certificate .*sl-1\.pem"):
        certs.load(config)


def test_an_encrypted_key_says_how_to_decrypt_it(sites):
    config = sites.config("alpha/sl/sl-1")
    key = load_pem_private_key(Path(config.key).read_bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    Path(config.key).write_bytes(locked)
    with pytest.raises(CertificateMissing, match="is encrypted; decrypt it"):
        certs.load(config)


def test_a_ca_outside_the_bundle_is_untrusted(sites):
    with pytest.raises(CertificateUntrusted, match=r"sl-1\.pem: no CA of the trust bundle signed"):
        certs.load(sites.config("gamma/sl/sl-1"))


def test_a_certificate_from_another_sites_ca_is_of_the_wrong_site(sites):
    config = sites.forged("beta", uris=["spiffe://swarm.test/alpha/sl/sl-1"])
    with pytest.raises(WrongSite, match="signed by the CA of site beta"):
        certs.load(config)


def test_a_certificate_without_usable_name_is_untrusted(sites):
    with pytest.raises(CertificateUntrusted, match="names 0 nodes"):
        certs.load(sites.forged("alpha"))


def test_a_certificate_like_hpes_needs_the_setting_that_accepts_it(sites):
    config = sites.forged("alpha", dns=["SL-1"], like_hpe=True)
    with pytest.raises(CertificateUntrusted, match="strict_x509=false"):
        certs.load(config)
    assert certs.load(sites.lenient(config)).name == NodeName.parse("alpha/sl/1")


def test_a_key_that_others_can_read_is_a_warning_without_its_contents(sites, caplog):
    config = sites.config("alpha/sl/sl-1")
    Path(config.key).chmod(0o640)
    with caplog.at_level(logging.WARNING):
        certs.load(config)
    (record,) = caplog.records
    assert "others can read it (mode 640); run `chmod 600" in record.getMessage()
    assert Path(config.key).read_text().splitlines()[1] not in caplog.text
