"""JSON from another node: parsed so that nothing in it can hurt the reader."""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_DEPTH: Final = 64
"""More levels than any message has."""
_NO_BRACKET: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[^][{}"]++', re.DOTALL)


def parse(text: bytes) -> Any:
    """The value; ValueError for what is not JSON by the letter, in UTF-8, or nested deeper than MAX_DEPTH."""
    # Before json sees it: json recurses, and where a library has raised the limit for that (py-evm does), a deep nest
    # overflows the stack and ends the process.
    brackets = _NO_BRACKET.sub(b"", text)
    for _ in range(MAX_DEPTH):
        if not brackets:
            break
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise ValueError(f"its brackets do not match, or are nested deeper than {MAX_DEPTH}")
    value = json.loads(text.decode(), parse_constant=_no_number)
    if b"\\ud" in text.lower():
        json.dumps(value, ensure_ascii=False).encode()  # half a character could be written nowhere
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")
