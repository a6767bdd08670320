"""What is made from the commands' definitions is current."""

from swarm_hpc.swci import document
from swarm_hpc.swci.commands import COMMANDS


def test_the_page_and_the_clients_methods_are_current() -> None:
    page = document.DOCS.read_text(encoding="utf-8")
    assert document.with_table(page) == page, "run python -m swarm_hpc.swci.document"
    assert document.methods() == document.METHODS.read_text(encoding="utf-8"), "run python -m swarm_hpc.swci.document"


def test_the_page_has_every_command() -> None:
    for command in COMMANDS:
        assert f"| `{command.name}` |" in document.table()
