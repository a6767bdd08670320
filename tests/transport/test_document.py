"""JSON that is meant to hurt, in a process where a library has raised the recursion limit."""

import json
import sys

import pytest

from swarm_hpc.transport import document


@pytest.fixture(autouse=True)
def raised_limit():
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)
    yield
    sys.setrecursionlimit(before)


def test_a_message_is_read():
    value = {"text": '[{"\\ü\U0001f600', "numbers": [1, 2.5, None, True], "nested": {"a": [{"b": []}]}}
    assert document.parse(json.dumps(value).encode()) == value
    assert document.parse(json.dumps(value, ensure_ascii=False).encode()) == value
    assert document.parse(b"[" * document.MAX_DEPTH + b"]" * document.MAX_DEPTH)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 1_000_000,
        b"[" * 500_000 + b"]" * 500_000,
        b'{"x":' * 200_000 + b"1" + b"}" * 200_000,
        b"[" * (document.MAX_DEPTH + 1) + b"]" * (document.MAX_DEPTH + 1),
        b'"' + b"\\" * 1_000_001,
        b"[NaN]",
        b"-Infinity",
        b"9" * 10_000,
        b'"\\ud800"',
        b'"\\UD800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b"",
        '{"x": 1}'.encode("utf-16"),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_could_hurt_is_a_value_error(text):
    with pytest.raises(ValueError):
        document.parse(text)
