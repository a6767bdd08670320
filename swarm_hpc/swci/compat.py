"""HPE's Python class Swci, with its names and its way of failing, over this project's web mode.

As there, every method returns a list of stripped lines, which is empty where it failed: getErrors() then says why.
Programs that are written anew use client.py, whose methods return data and raise errors.
"""

from __future__ import annotations

import csv
import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote as quote_query

from swarm_hpc.config import IdentityConfig
from swarm_hpc.errors import ConfigError, ProtocolError, SwarmError, TimedOut
from swarm_hpc.identity import certs
from swarm_hpc.records import decode
from swarm_hpc.swci import topology
from swarm_hpc.swci.client import ANSWER_S, CONNECT_S, Wire
from swarm_hpc.swci.grammar import quote

DEFAULT_CONTRACT: Final = "defaultbb.cqdb.sml.hpe"
DEFAULT_TASKRUNNER: Final = "defaulttaskbb.taskdb.sml.hpe"
MAX_TASK_S: Final = 7 * 86400.0
"""executeTask gives up waiting after this time; HPE's never does."""
_CACHED: Final = (
    "LIST CONTEXTS",
    "LIST CONTRACTS",
    "LIST TASKS",
    "LIST TASKRUNNERS",
    "GET CONTEXT INFO",
    "GET CONTRACT INFO",
    "GET TASK INFO",
    "GET TASKRUNNER INFO",
    "GET TASK BODY",
)
_READS: Final = ("GET ", "LIST ", "LS", "PWD", "PERFDATA", "SLEEP")


class Swci:
    """HPE's class of that name. Where it says `verify=False`, this one checks certificates on both sides."""

    def __init__(
        self,
        swciIp: str,
        port: int = 30306,
        clientCert: str | None = None,
        clientPKey: str | None = None,
        clientCABundle: str | None = None,
        logger: logging.Logger | None = None,
        logLv: int = logging.WARNING,
        enableCaching: bool = True,
    ) -> None:
        """clientCABundle is the trust bundle, a JSON file (`swarm-hpc certs bundle`). RuntimeError: no IP, no port."""
        if not swciIp:
            raise RuntimeError("swciIp: give the address of a SWCI in web mode")
        if not isinstance(port, int):
            raise RuntimeError(f"port: {port!r} is not a number")
        if not clientCert or not clientPKey or not clientCABundle:
            raise ConfigError("clientCert, clientPKey, clientCABundle: SWCI speaks mutual TLS alone: give all three")
        self.logger = logger or logging.getLogger(__name__)
        self.logger.setLevel(logLv)
        identity = certs.load(IdentityConfig(cert=clientCert, key=clientPKey, bundle=clientCABundle))
        host = f"[{swciIp}]" if ":" in swciIp and not swciIp.startswith("[") else swciIp
        self._wire = Wire(identity, f"{host}:{port}", site=None, connect_timeout_s=CONNECT_S, answer_timeout_s=ANSWER_S)
        self._cache: dict[str, list[str]] | None = {} if enableCaching else None
        self._errors: list[str] = []

    # what went wrong, and what is remembered

    def getErrors(self) -> list[str]:
        """Why the last method failed; empty where it did not."""
        return list(self._errors)

    def clearCache(self) -> None:
        """Ask everything anew."""
        if self._cache is not None:
            self._cache.clear()

    def setLogLevel(self, logLv: int) -> None:
        """Level of this class's messages."""
        self.logger.setLevel(logLv)

    # contexts

    def createContext(
        self, name: str, ip: str | None = None, port: int = 30304, service: str | None = None
    ) -> list[str]:
        """CREATE CONTEXT, by address or by service."""
        if service is not None:
            return self._say("CREATE CONTEXT {} WITH SERVICE {}", name, service)
        if ip is None:
            return self._failed(ConfigError("createContext: give ip or service"))
        return self._say("CREATE CONTEXT {} WITH IP {} {}", name, ip, port)

    def switchContext(self, name: str) -> list[str]:
        """SWITCH CONTEXT."""
        return self._say("SWITCH CONTEXT {}", name)

    def getContextInfo(self, name: str) -> list[str]:
        """GET CONTEXT INFO."""
        return self._say("GET CONTEXT INFO {}", name)

    def listContexts(self) -> list[str]:
        """LIST CONTEXTS."""
        return self._say("LIST CONTEXTS")

    # training contracts

    def createTrainingContract(self, ct: str) -> list[str]:
        """CREATE CONTRACT."""
        return self._say("CREATE CONTRACT {}", ct)

    def getTrainingContractInfo(self, ct: str) -> list[str]:
        """GET CONTRACT INFO."""
        return self._say("GET CONTRACT INFO {}", ct)

    def getTrainingContractStatus(self, ct: str) -> list[str]:
        """GET CONTRACT STATUS."""
        return self._say("GET CONTRACT STATUS {}", ct)

    def getTrainingContractPerformanceData(self, ct: str) -> list[str]:
        """PERFDATA."""
        return self._say("PERFDATA {}", ct)

    def listTrainingContracts(self) -> list[str]:
        """LIST CONTRACTS."""
        return self._say("LIST CONTRACTS")

    def resetTrainingContract(self, ct: str = DEFAULT_CONTRACT) -> list[str]:
        """RESET CONTRACT."""
        return self._say("RESET CONTRACT {}", ct)

    # tasks

    def uploadTaskDefintion(self, path: str) -> list[str]:
        """Send a task's YAML file into the session's folder."""
        file = Path(path)
        try:
            data = file.read_bytes()
        except OSError as exc:
            return self._failed(ConfigError(f"{file}: {exc.strerror}"))
        mark = secrets.token_hex(16)
        name = file.name.replace("\\", "\\\\").replace('"', '\\"')
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + f"\r\n--{mark}--\r\n".encode()
        return self._post("/uploadTaskDef", body, f"multipart/form-data; boundary={mark}")

    def createTaskFrom(self, yaml: str) -> list[str]:
        """CREATE TASK FROM a file that is there, or was uploaded."""
        return self._say("CREATE TASK FROM {}", yaml)

    def registerTask(self, yaml: str, finalize: bool = True) -> list[str]:
        """Upload a file, create its task and, unless told otherwise, fix its body."""
        if not self.uploadTaskDefintion(yaml):
            return []
        lines = self.createTaskFrom(Path(yaml).name)
        if not lines or not finalize:
            return lines
        name = next(line.rpartition(":")[2].strip() for line in lines if "Task Registered" in line)
        fixed = self.finalizeTask(name)
        return [*lines, *fixed] if fixed else []

    def finalizeTask(self, t: str) -> list[str]:
        """FINALIZE TASK."""
        return self._say("FINALIZE TASK {}", t)

    def deleteTask(self, t: str) -> list[str]:
        """DELETE TASK."""
        return self._say("DELETE TASK {}", t)

    def getTaskInfo(self, t: str) -> list[str]:
        """GET TASK INFO."""
        return self._say("GET TASK INFO {}", t)

    def getTaskBody(self, t: str) -> list[str]:
        """GET TASK BODY."""
        return self._say("GET TASK BODY {}", t)

    def listTasks(self) -> list[str]:
        """LIST TASKS."""
        return self._say("LIST TASKS")

    # taskrunners

    def assignTask(self, t: str, tr: str, peers: int) -> list[str]:
        """ASSIGN TASK."""
        return self._say("ASSIGN TASK {} TO {} WITH {} PEERS", t, tr, peers)

    def executeTask(
        self,
        t: str,
        tr: str = DEFAULT_TASKRUNNER,
        peers: int = 1,
        pollWaitInSec: float = 120,
        resetTROnSuccess: bool = True,
    ) -> list[str]:
        """Assign a task, look at it every pollWaitInSec seconds until it has ended, and reset the taskrunner where it
        is complete. The last status; [] where it failed."""
        if not self.assignTask(t, tr, peers):
            return []
        deadline = time.monotonic() + MAX_TASK_S
        run = ""
        while status := self.getTaskRunnerStatus(tr):
            run = run or _fact(status, "RUN")
            if _is_done(status) or _fact(status, "RUN") != run:
                break
            if time.monotonic() > deadline:
                return self._failed(TimedOut(f"{tr} has not ended task {t} within {MAX_TASK_S / 86400:g} days"))
            time.sleep(pollWaitInSec)
        if not status:
            return []
        if _state(status) == "IDLE" or _fact(status, "RUN") != run:
            return self._failed(SwarmError(f"task {t} was taken back by a reset of {tr}: {'; '.join(status)}"))
        if _state(status) == "ERROR":
            return self._failed(SwarmError(f"task {t} ended in ERROR at {tr}: {'; '.join(status)}"))
        if resetTROnSuccess and not self.resetTaskRunner(tr):
            return []
        return status

    def isTaskDone(self, tr: str) -> bool:
        """Whether the taskrunner has nothing under way."""
        return _is_done(self.getTaskRunnerStatus(tr))

    def getTaskRunnerInfo(self, tr: str) -> list[str]:
        """GET TASKRUNNER INFO."""
        return self._say("GET TASKRUNNER INFO {}", tr)

    def getTaskRunnerStatus(self, tr: str) -> list[str]:
        """GET TASKRUNNER STATUS."""
        return self._say("GET TASKRUNNER STATUS {}", tr)

    def getTaskRunnerPeerStatus(self, tr: str, idx: int | str) -> list[str]:
        """GET TASKRUNNER PEER STATUS."""
        return self._say("GET TASKRUNNER PEER STATUS {} {}", tr, idx)

    def listTaskRunners(self) -> list[str]:
        """LIST TASKRUNNERS."""
        return self._say("LIST TASKRUNNERS")

    def resetTaskRunner(self, tr: str = DEFAULT_TASKRUNNER) -> list[str]:
        """RESET TASKRUNNER."""
        return self._say("RESET TASKRUNNER {}", tr)

    # the rest

    def cd(self, path: str) -> list[str]:
        """CD; the new folder."""
        self._say("CD {}", path)
        return [] if self._errors else self.pwd()

    def ls(self, opt: str = "") -> list[str]:
        """LS."""
        return self._command(f"LS {opt}")

    def pwd(self) -> list[str]:
        """PWD."""
        return self._say("PWD")

    def sleep(self, s: float) -> list[str]:
        """SLEEP, at the server."""
        return self._say("SLEEP {}", s)

    def listNodes(self) -> list[str]:
        """LIST NODES."""
        return self._say("LIST NODES")

    def plotTopology(
        self,
        SNColour: str = "#ADD8E6",
        SWOPColor: str = "#33FF33",
        SLColor: str = "#FFCCCB",
        attrs: Sequence[str] = (),
        file: str = "topology.png",
    ) -> list[str]:
        """Draw the nodes into a PNG file, whose name is returned. attrs: of Port, ContainerName, UUID, ParentUUID,
        i-am-alive. Needs matplotlib."""
        lines = self.listNodes()
        if not lines:
            return []
        nodes = list(csv.DictReader(lines))
        if wrong := [name for name in attrs if name not in lines[0].split(",")]:
            return self._failed(ConfigError(f"attrs: LIST NODES has no column {wrong[0]}"))
        try:
            topology.draw(nodes, {"SN": SNColour, "SWOP": SWOPColor, "SL": SLColor}, attrs, Path(file))
        except SwarmError as exc:
            return self._failed(exc)
        return [file]

    # how commands travel

    def _say(self, pattern: str, *arguments: object) -> list[str]:
        """Carry out a command, whose {} are these arguments."""
        return self._command(pattern.format(*(quote(str(one)) for one in arguments)))

    def _command(self, text: str) -> list[str]:
        if self._cache is not None and text in self._cache:
            self._errors = []
            return list(self._cache[text])
        if not text.startswith(_READS):
            self.clearCache()
        lines = self._post(f"/exec?cmd={quote_query(text, safe='')}")
        if self._cache is not None and not self._errors and text.startswith(_CACHED):
            self._cache[text] = list(lines)
        return lines

    def _post(self, path: str, body: bytes = b"", content_type: str = "text/plain") -> list[str]:
        self._errors = []
        try:
            answer = decode(dict[str, list[str]], self._wire.post(path, body, content_type))
            lines = [line.strip() for text in answer["CONTENT"] for line in text.splitlines()]
        except SwarmError as exc:
            return self._failed(exc)
        except KeyError:
            return self._failed(ProtocolError(f"{path}: the answer has no CONTENT"))
        if failures := [line for line in lines if line.startswith("ERROR ")]:
            self._errors = failures
            self.logger.error("%s", failures[0])
            return []
        return lines

    def _failed(self, error: SwarmError) -> list[str]:
        self._errors = [f"ERROR {error}"]
        self.logger.error("%s", error)
        return []


def _state(status: Sequence[str]) -> str:
    return _fact(status, "TASK_STATE")


def _fact(status: Sequence[str], wanted: str) -> str:
    """What the line of that name says in a taskrunner's status."""
    for line in status:
        name, colon, value = line.partition(":")
        if colon and name.strip() == wanted:
            return value.strip()
    return ""


def _is_done(status: Sequence[str]) -> bool:
    return _state(status) in ("COMPLETE", "ERROR", "IDLE")
