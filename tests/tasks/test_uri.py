"""URIs that a task names: what can be fetched, and that nothing else gets by, nor any password out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_hpc.errors import ConfigError
from swarm_hpc.tasks.uri import SCHEMES, parse_uri


@pytest.mark.parametrize(
    ("text", "scheme", "path", "name"),
    [
        ("https://example.org/a/b.zip?x=1", "https", "/a/b.zip", "b.zip"),
        ("HTTP://example.org:8080", "http", "", "download"),
        ("file:///data/my%20file", "file", "/data/my file", "my file"),
        ("http://example.org/%2e%2e", "http", "/..", "download"),
    ],
)
def test_what_can_be_fetched_is_taken_apart(text, scheme, path, name):
    uri = parse_uri(text)
    assert (uri.scheme, uri.path, uri.name) == (scheme, path, name)


@pytest.mark.parametrize(
    "text",
    [
        "ftp://example.org/a",
        "/etc/passwd",
        "file://elsewhere/a",
        "file:///a%00b",
        "file:///a?b",
        "http://",
        "http://example.org:x/",
        "http://a b/",
        "http://[::1/",
        "gopher://jane:s3cret@example.org/",
        "http://jane:s3cret@example.org/",
        "http://jane@example.org/",
        "http://jane:s3cret/more@example.org/",
        "http://jane\uff1as3cret@example.org/",
        "http:/jane:s3cret@example.org/",
        "jane:s3cret@example.org/",
    ],
)
def test_anything_else_is_refused_without_a_password_being_told(text):
    with pytest.raises(ConfigError) as caught:
        parse_uri(text)
    assert "s3cret" not in str(caught.value)


@given(st.text(max_size=60) | st.text("htps:/@[]%.file 0a?#", max_size=30).map(lambda rest: f"http://{rest}"))
def test_any_text_is_a_uri_or_refused(text):
    try:
        uri = parse_uri(text)
    except ConfigError:
        return
    assert uri.scheme in SCHEMES
    assert "/" not in uri.name
