"""The prompt at a terminal: completion, history and line editing. The only file that knows prompt_toolkit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory

from swarm_hpc.errors import ConfigError
from swarm_hpc.swci.completion import Completions, offers
from swarm_hpc.swci.session import Session


class TabKey(Completer):
    """Shows what Completions finds."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Words alone: names need the event loop."""
        words, _, begun = offers(document.text_before_cursor)
        return [Completion(word, -len(begun)) for word in words]

    async def get_completions_async(
        self, document: Document, complete_event: CompleteEvent
    ) -> AsyncGenerator[Completion, None]:
        """Words and names."""
        found, length = await self._completions.find(document.text_before_cursor)
        for word in found:
            yield Completion(word, -length)


def make_prompt(session: Session, history: str) -> PromptSession[str]:
    """A prompt that keeps what was typed in that file; empty: nowhere. ConfigError where the file cannot be used."""
    kept: InMemoryHistory | FileHistory = InMemoryHistory()
    if history:
        file = Path(history).expanduser()
        try:
            file.touch(mode=0o600)
        except OSError as exc:
            raise ConfigError(f"history: {file}: {exc.strerror}; give another file, or history= for none") from exc
        kept = FileHistory(file)
    return PromptSession(
        history=kept, completer=TabKey(Completions(session)), complete_while_typing=False, enable_history_search=True
    )
