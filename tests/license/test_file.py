"""Licence files: what the owner signed is read back, and nothing else is taken."""

from __future__ import annotations

import base64
import json
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError, LicenseError
from swarm_hpc.license import file
from tests.license.conftest import Owner, terms

KEY = Ed25519PrivateKey.generate()


def test_what_was_signed_is_read_back(owner: Owner) -> None:
    path = owner.sign(licensee="Universitätsklinikum", features=("training", "merge"))
    assert file.read(path, owner.key.public_key()).licensee == "Universitätsklinikum"
    assert file.read(path, None).features == ("training", "merge")


def test_a_time_zone_and_the_layout_of_the_file_do_not_matter(tmp_path) -> None:
    made = terms(valid_until=datetime(2099, 1, 31, tzinfo=timezone(timedelta(hours=5, minutes=30))))
    path = tmp_path / "licence.json"
    whole = json.loads(file.sign(made, KEY))
    path.write_text(json.dumps(dict(reversed(whole.items())), indent=8))
    assert file.read(path, KEY.public_key()) == made


@pytest.mark.parametrize(
    ("key", "value"),
    [("seats", 6), ("licensee", "Me"), ("valid_until", "2999-01-01T00:00:00Z"), ("features", []), ("more", 1)],
)
def test_a_changed_licence_is_refused(owner: Owner, key: str, value: object) -> None:
    path = owner.sign()
    whole = json.loads(path.read_text())
    whole["terms"][key] = value
    path.write_text(json.dumps(whole))
    with pytest.raises(LicenseError, match=rf"{path}: is not signed with the owner's key, or was changed since"):
        file.read(path, owner.key.public_key())


@given(at=st.integers(0), bits=st.integers(1, 255))
def test_no_byte_can_be_changed_so_that_other_terms_are_taken(tmp_path_factory, at: int, bits: int) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.json"
    good = terms(valid_from=datetime(2027, 1, 1, tzinfo=UTC), valid_until=datetime(2028, 1, 1, tzinfo=UTC))
    text = bytearray(file.sign(good, KEY))
    text[at % len(text)] ^= bits
    path.write_bytes(text)
    try:
        assert file.read(path, KEY.public_key()) == good  # a space of the layout
    except LicenseError as exc:
        assert str(path) in str(exc)


def test_another_s_signature_is_none(owner: Owner) -> None:
    with pytest.raises(LicenseError, match="check public_key"):
        file.read(owner.sign(), KEY.public_key())


def test_a_signature_that_the_key_made_for_something_else_is_none(owner: Owner) -> None:
    whole = json.loads(owner.sign().read_text())
    plain = json.dumps(whole["terms"], sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    whole["signature"] = base64.b64encode(owner.key.sign(plain)).decode()
    owner.sent.write_text(json.dumps(whole))
    with pytest.raises(LicenseError, match="is not signed"):
        file.read(owner.sent, owner.key.public_key())


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"terms": 1, "signature": ""}', '{"terms": {}, "signature": "?"}', '{"terms": {', "\0"]
)
def test_what_is_no_licence_is_told(tmp_path, text: str) -> None:
    path = tmp_path / "licence.json"
    path.write_text(text)
    with pytest.raises(LicenseError, match=rf"{path}: is no licence, or was cut short"):
        file.read(path, KEY.public_key())
    with pytest.raises(LicenseError, match="cannot be read"):
        file.read(tmp_path / "none.json", KEY.public_key())


@pytest.mark.parametrize("change", [{"seats": 0}, {"id": "a b"}, {"licensee": "two\nlines"}])
def test_terms_that_cannot_be_are_refused_although_signed(owner: Owner, change: dict[str, object]) -> None:
    with pytest.raises(LicenseError, match=f"LicenseTerms: {next(iter(change))}"):
        file.read(owner.sign(**change), owner.key.public_key())


def test_a_licence_holds_from_its_first_moment_to_its_last(tmp_path) -> None:
    start, end = datetime(2027, 1, 1, tzinfo=UTC), datetime(2027, 7, 1, tzinfo=UTC)
    made, path = replace(terms(), valid_from=start, valid_until=end), tmp_path / "licence.json"
    for today in (start, end - timedelta(seconds=1)):
        file.check_valid(made, path, today)
    with pytest.raises(LicenseError, match=rf"{path}: licence lung is not valid before 2027-01-01 00:00 UTC"):
        file.check_valid(made, path, start - timedelta(seconds=1))
    with pytest.raises(LicenseError, match=r"ended on 2027-07-01 00:00 UTC; ask ada@lung.example for a new one"):
        file.check_valid(made, path, end)


def test_its_end_is_warned_of_ahead_of_time_and_no_longer_after_it() -> None:
    end = datetime(2027, 7, 1, tzinfo=UTC)
    made = terms(valid_from=end - timedelta(days=100), valid_until=end)
    assert made.warning(end - timedelta(days=15), 14) == ""
    assert "in 13 days; ask ada" in made.warning(end - timedelta(days=13), 14)
    assert "in 5 hours" in made.warning(end - timedelta(hours=5), 14)
    assert made.warning(end, 14) == ""


def test_keys_are_private_never_overwritten_and_may_have_a_passphrase(tmp_path) -> None:
    private, public = file.make_keys(tmp_path / "owner", passphrase="hush")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key = file.load_private_key(private, "hush")
    assert file.load_public_key(public).public_bytes_raw() == key.public_key().public_bytes_raw()
    for wrong in ("", "loud"):
        with pytest.raises(ConfigError, match="SWARM_HPC_LICENSE_PASSPHRASE") as refusal:
            file.load_private_key(private, wrong)
        assert "loud" not in str(refusal.value)
    with pytest.raises(ConfigError, match="exists already"):
        file.make_keys(tmp_path / "owner")
    with pytest.raises(ConfigError, match="holds no public key"):
        file.load_public_key(private)
    with pytest.raises(ConfigError, match="cannot be read"):
        file.load_public_key(tmp_path / "none.pem")
