"""When to try again, without a clock and without a network."""

import json

import pytest

from swarm_hpc.errors import BlobNotFound, CertificateUntrusted, ProtocolError, SwarmError
from swarm_hpc.transport.retry import DROPS, FIRST_PAUSE_S, LONGEST_PAUSE_S, Patience, at, problem


def test_pauses_double_up_to_a_limit_and_end_at_the_deadline():
    patience = Patience(until=100.0)
    pauses = [patience.pause_s(now=0.0) for _ in range(20)]
    for number, pause in enumerate(pauses):
        full = min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S)
        assert full / 2 <= pause <= full
    assert patience.pause_s(now=99.99) == pytest.approx(0.01)
    assert patience.pause_s(now=100.0) is None


def test_only_drops_in_a_row_count_as_refusal():
    patience = Patience(until=1.0)
    assert [patience.failed(dropped=True) for _ in range(DROPS - 1)] == [False] * (DROPS - 1)
    assert not patience.failed(dropped=False), "nobody answered: a restart"
    assert [patience.failed(dropped=True) for _ in range(DROPS)] == [False] * (DROPS - 1) + [True]


def test_progress_starts_the_count_and_the_pauses_anew():
    patience = Patience(until=1.0)
    for _ in range(DROPS - 1):
        patience.failed(dropped=True)
        patience.pause_s(0.0)
    patience.progressed(until=50.0)
    assert not patience.failed(dropped=True)
    assert patience.pause_s(2.0) <= FIRST_PAUSE_S


def answer(title, detail="why"):
    return json.dumps({"type": "about:blank", "title": title, "status": 409, "detail": detail}).encode()


def test_a_problem_is_the_exception_of_its_title():
    error = problem("a:1", 404, "application/problem+json; charset=utf-8", answer("BlobNotFound"))
    assert type(error) is BlobNotFound and str(error) == "why"


def test_an_unknown_title_is_still_one_of_ours():
    assert type(problem("a:1", 500, "application/problem+json", answer("KeyboardInterrupt"))) is SwarmError


def test_a_proxys_page_for_a_lost_server_is_no_answer():
    assert problem("a:1", 502, "text/html", b"<html>") is None


@pytest.mark.parametrize("text", [b"", b"[]", b'{"title": "NotFound"}'])
def test_a_broken_problem_document_is_a_protocol_error(text):
    assert type(problem("a:1", 500, "application/problem+json", text)) is ProtocolError


def test_any_other_error_page_is_a_protocol_error():
    assert type(problem("a:1", 404, "text/html", b"<html>")) is ProtocolError


def test_an_identity_error_gets_the_address_in_front():
    error = at("a:1", CertificateUntrusted("who"))
    assert type(error) is CertificateUntrusted and str(error) == "a:1: who"
