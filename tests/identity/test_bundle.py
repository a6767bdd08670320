"""The trust bundle's file, and which name a verified chain stands for."""

import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from swarm_hpc.errors import CertificateMissing, CertificateUntrusted, ConfigError, WrongSite
from swarm_hpc.identity.bundle import TrustBundle
from swarm_hpc.records import NodeName


def der(path):
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


def chain(sites, config, *authorities):
    return [der(Path(config.cert)), *(der(sites.cas[site]) for site in authorities)]


def test_a_saved_bundle_loads_again_and_has_the_form_of_the_protocol(sites, tmp_path):
    bundle = TrustBundle.load(sites.bundle_file)
    bundle.save(tmp_path / "copy.json")
    assert TrustBundle.load(tmp_path / "copy.json") == bundle
    values = json.loads((tmp_path / "copy.json").read_text())
    assert values["trust_domain"] == "swarm.test"
    assert values["sites"]["alpha"]["ca"] == sites.cas["alpha"].read_text()


def test_a_missing_bundle_names_the_file_and_the_command(tmp_path):
    with pytest.raises(CertificateMissing, match=r"none\.json: No such file.*swarm-hpc certs bundle"):
        TrustBundle.load(tmp_path / "none.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"trust_domain": "x", "sites": {"a": {"ca": "no PEM"}}}'])
def test_a_file_that_is_no_bundle_is_named(tmp_path, text):
    file = tmp_path / "odd.json"
    file.write_text(text)
    with pytest.raises(CertificateMissing, match=r"odd\.json"):
        TrustBundle.load(file)


def test_two_sites_cannot_share_a_ca(sites):
    pem = sites.cas["alpha"].read_bytes()
    with pytest.raises(ConfigError, match="alpha and beta have the same CA"):
        TrustBundle(trust_domain="swarm.test", authorities={"alpha": pem, "beta": pem})


def test_a_certificate_is_named_by_its_uri(sites):
    bundle = TrustBundle.load(sites.bundle_file)
    config = sites.config("alpha/sl/sl-1", dns=["host.example"])
    assert bundle.name_of(chain(sites, config, "alpha")) == NodeName.parse("alpha/sl/sl-1")


@pytest.mark.parametrize("dns", [["SL-1"], ["sl-1.alpha.example"], ["login7.example", "sl-1.alpha.example"]])
def test_a_certificate_without_uri_is_named_by_its_dns_name_in_the_site_of_its_ca(sites, dns):
    bundle = TrustBundle.load(sites.bundle_file)
    assert bundle.name_of(chain(sites, sites.forged("beta", dns=dns), "beta")) == NodeName.parse("beta/sl/1")


@pytest.mark.parametrize("dns", [[], ["login7.example"], ["sl-1.example", "sl-2.example"]])
def test_a_certificate_that_names_no_node_or_two_is_refused(sites, dns):
    bundle = TrustBundle.load(sites.bundle_file)
    with pytest.raises(CertificateUntrusted, match=r"names \d nodes"):
        bundle.name_of(chain(sites, sites.forged("beta", dns=dns), "beta"))


def test_a_sites_ca_vouches_for_its_own_names_only(sites):
    bundle = TrustBundle.load(sites.bundle_file)
    config = sites.forged("beta", uris=["spiffe://swarm.test/alpha/sn/sn"])
    with pytest.raises(WrongSite, match=r"alpha/sn/sn was signed by the CA of site beta"):
        bundle.name_of(chain(sites, config, "beta"))


def test_a_chain_through_two_sites_cas_is_refused(sites):
    bundle = TrustBundle.load(sites.bundle_file)
    with pytest.raises(WrongSite, match="several sites: alpha, beta"):
        bundle.name_of(chain(sites, sites.config("alpha/sl/1"), "beta", "alpha"))


@pytest.mark.parametrize(
    "uris",
    [
        ["spiffe://elsewhere/alpha/sl/1"],
        ["https://swarm.test/alpha/sl/1"],
        ["spiffe://swarm.test/alpha/sl"],
        ["spiffe://swarm.test/alpha/king/1"],
        ["spiffe://swarm.test/alpha/sl/1", "spiffe://swarm.test/alpha/sl/2"],
    ],
)
def test_uris_that_are_no_node_of_this_trust_domain_are_refused(sites, uris):
    bundle = TrustBundle.load(sites.bundle_file)
    with pytest.raises(CertificateUntrusted):
        bundle.name_of(chain(sites, sites.forged("alpha", uris=uris), "alpha"))


def test_a_chain_that_ends_outside_the_bundle_is_refused(sites):
    bundle = TrustBundle.load(sites.bundle_file)
    with pytest.raises(CertificateUntrusted, match="does not end in a CA of the trust bundle"):
        bundle.name_of(chain(sites, sites.config("gamma/sl/1"), "gamma"))
