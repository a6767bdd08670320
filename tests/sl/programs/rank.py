"""An ML program without a framework: does what PLAN says for its rank, and writes down what its SL answered.

PLAN is a JSON object, rank -> steps; a step is [what, argument]. Ends at the first error, with exit code 1.
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from swarm_hpc.errors import SwarmError
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.records import FinishMode, Platform
from swarm_hpc.sl.channel import LeaveAsked, MlChannel, OpenRequest

FOLDER = Path(os.environ["FOLDER"])
RANK = os.environ["SWARM_RANK"]


class Program:
    def __init__(self) -> None:
        self.channel = MlChannel.connect(os.environ["SWARM_SL_SOCKET"])
        self.session = None

    def open(self, fields):
        value, size = fields.pop("value", 0.0), fields.pop("size", 5)
        tensors = (TensorSpec("weight", "F32", (size,)), TensorSpec("steps", "I64", ()))
        request = OpenRequest(**{"platform": Platform.PYTORCH, "tensors": tensors} | fields)
        self.session = self.channel.open(request)
        if not self.session.resume:
            self.weight[:] = value
        return {"resume": self.session.resume, "round": self.session.round}

    def sync(self, fields):
        self.weight[:] += fields.pop("add", 0.0)
        return asdict(self.channel.sync(**fields)) | self.parameters

    def finish(self, mode):
        return asdict(self.channel.finish(FinishMode(mode))) | self.parameters

    def await_file(self, name):
        deadline = time.monotonic() + 60
        while not (FOLDER / name).exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def stop_my_sl(self, _):
        os.kill(os.getppid(), signal.SIGSTOP)

    def end_my_sl(self, _):
        os.kill(os.getppid(), signal.SIGTERM)
        while (reason := self.channel.leave_reason()) is None:
            time.sleep(0.02)
        raise LeaveAsked(reason)

    def environment(self, _):
        ours = ("SWARM_SL_", "SWARM_RANK", "SWARM_NUM_")
        return {name: value for name, value in os.environ.items() if "PMI" in name or name.startswith(ours)}

    def fail(self, text):
        sys.exit(text)

    @property
    def weight(self):
        return self.session.arena.array("weight")

    @property
    def parameters(self):
        return {
            "weight": self.weight.tolist(),
            "bytes": np.frombuffer(self.session.arena.buffer, np.uint8).tolist()[-20:],
        }


def main() -> None:
    program, answers = Program(), []
    try:
        for what, argument in json.loads(os.environ["PLAN"])[RANK]:
            try:
                answers.append(getattr(program, what)(argument))
            except SwarmError as exc:
                answers.append({"error": type(exc).__name__, "text": str(exc)})
                sys.exit(1)
            except LeaveAsked as exc:
                answers.append({"leave": str(exc)})
                program.channel.saved()
                sys.exit(os.EX_TEMPFAIL)
    finally:
        beside = FOLDER / f"answers.{RANK}.new"
        beside.write_text(json.dumps(answers))
        beside.rename(FOLDER / f"answers.{RANK}")


if __name__ == "__main__":
    main()
