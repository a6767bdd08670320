"""`ledger=geth` behind web3's provider interface: reads go to geth, transactions to CometBFT's mempool."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, cast

from eth_utils.crypto import keccak
from web3.providers.base import BaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm_hpc.errors import NotReachable
from swarm_hpc.sn.comet import CometRpc
from swarm_hpc.sn.geth import GethRpc, RpcRefused

log = logging.getLogger(__name__)

_PAGE: Final = 500
_RESTART_S: Final = 25.0
"""A call waits so long for programs that are being started again."""


class Backend(Protocol):
    """What the provider needs of consensus.py."""

    geth: GethRpc
    comet: CometRpc

    def now_ms(self) -> int:
        """Ledger time, as blocks are stamped."""
        ...

    def halted(self) -> str:
        """Why there are no blocks."""
        ...

    def await_running(self, timeout_s: float) -> bool:
        """Wait for the programs to be up."""
        ...


class GethProvider(BaseProvider):
    """Standard JSON-RPC. `pending` is the final state at the time of now: what is not final is never seen."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend
        self._methods: dict[str, Callable[[list[Any]], dict[str, Any]]] = {
            "eth_call": self._call,
            "eth_getBlockByNumber": self._block,
            "eth_getTransactionCount": self._transaction_count,
            "eth_sendRawTransaction": self._send,
        }

    def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        """Answer one request; NotReachable when the programs behind it are not up again in time."""
        act = self._methods.get(method) or partial(self._backend.geth.answer, method)
        # While CometBFT replays what a killed geth has lost, geth would answer from an older state.
        self._backend.await_running(_RESTART_S)
        try:
            answer = act(list(params))
        except NotReachable:
            if not self._backend.await_running(_RESTART_S):
                raise
            answer = act(list(params))
        return cast(RPCResponse, answer)

    def is_connected(self, show_traceback: bool = False) -> bool:
        """Whether geth answers."""
        try:
            self._backend.geth.call("eth_chainId")
        except NotReachable:
            return False
        return True

    def count_transactions(self, first: int, last: int) -> int:
        """How many transactions these blocks hold; many blocks at a time."""
        total = 0
        for start in range(first, last + 1, _PAGE):
            numbers = range(start, min(start + _PAGE - 1, last) + 1)
            calls = [("eth_getBlockTransactionCountByNumber", [hex(number)]) for number in numbers]
            total += sum(int(count, 16) for count in self._backend.geth.batch(calls) if count)
        return total

    def halted(self) -> str:
        """Why no blocks can be made now; empty while they can."""
        return self._backend.halted()

    def _call(self, params: list[Any]) -> dict[str, Any]:
        call, block = params[0], params[1] if len(params) > 1 else "latest"
        if block == "pending":
            return self._backend.geth.answer("eth_call", [call, "latest", {}, {"time": hex(self._backend.now_ms())}])
        return self._backend.geth.answer("eth_call", [call, block])

    def _block(self, params: list[Any]) -> dict[str, Any]:
        if params[0] != "pending":
            return self._backend.geth.answer("eth_getBlockByNumber", params)
        answer = self._backend.geth.answer("eth_getBlockByNumber", ["latest", *params[1:]])
        if "result" in answer:
            answer["result"] |= {"timestamp": hex(self._backend.now_ms())}
        return answer

    def _transaction_count(self, params: list[Any]) -> dict[str, Any]:
        # geth's pool forgets when geth is restarted, and the mempool does not: only the chain's count is certain.
        return self._backend.geth.answer("eth_getTransactionCount", [params[0], "latest"])

    def _send(self, params: list[Any]) -> dict[str, Any]:
        raw = bytes.fromhex(params[0][2:])
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": 1}
        try:
            checked = self._backend.comet.call("broadcast_tx_sync", tx=base64.b64encode(raw).decode())
        except RpcRefused as exc:
            if "already exists in cache" not in str(exc):
                return answer | {"error": {"code": exc.code, "message": str(exc)}}
        else:
            if checked["code"]:
                return answer | {"error": {"code": -32000, "message": checked["log"]}}
        return answer | {"result": "0x" + keccak(raw).hex()}
