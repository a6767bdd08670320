"""The text that sbatch is given. The files in sbatch/ are what it makes of the default site profile."""

from __future__ import annotations

import shlex
from typing import Final

from swarm_hpc.slurm.environment import LEFT_FILE
from swarm_hpc.slurm.plan import JobPlan, Warned

# SIGTERM (scancel, preemption, requeue) reaches every task by itself; bash only waits until all have ended in order.
_REQUEUE: Final = """
# Near the time limit: back into the queue, under the same ID. Where that cannot be, it runs on until the limit.
trap 'scontrol requeue "$SLURM_JOB_ID" || true' USR2
"""
_LEAVE: Final = """
# Ahead of the time limit: the tasks save their state and end, then the job goes back into the queue under the same ID.
export {left_file}="$PWD/.swarm-left-$SLURM_JOB_ID"
rm -f "${left_file}"
trap 'kill -USR2 $! || true' USR2
"""
_COME_BACK: Final = """\
if [ -e "${left_file}" ]; then
    rm -f "${left_file}"
    echo "*** JOB $SLURM_JOB_ID ON $SLURMD_NODENAME LEFT AT $(date +%FT%T) DUE TO TIME WARNING ***"
    scontrol requeue "$SLURM_JOB_ID"
fi
"""
_SCRATCH: Final = """
scratch="{folder}/swarm-$SLURM_JOB_ID"
on_every_node() {{ srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --mpi=none "$@"; }}
on_every_node mkdir -p "$scratch"
export TMPDIR="$scratch"
"""
_RUN: Final = """
# Slurm tells every task about scancel, preemption and the like; bash waits until they have ended in order.
trap : TERM
srun --mpi={mpi} --cpus-per-task="${{SLURM_CPUS_PER_TASK:-1}}" --kill-on-bad-exit=1 {command} {words} &
while kill -0 $! 2>/dev/null; do
    wait $! || true
done
status=0
wait $! || status=$?
"""

_WARNED: Final = {Warned.NOTHING: "", Warned.REQUEUE: _REQUEUE, Warned.LEAVE: _LEAVE.format(left_file=LEFT_FILE)}


def script(plan: JobPlan) -> str:
    """The job's script, for bash."""
    words = '"$@"' if plan.words is None else shlex.join(plan.words)
    return "".join(
        [
            "#!/bin/bash\n",
            plan.about,
            *(f"#SBATCH {_option(option)}\n" for option in plan.options),
            "\nset -e\n",
            *(f"{line}\n" for line in plan.setup),
            _SCRATCH.format(folder=plan.scratch) if plan.scratch else "",
            _WARNED[plan.warned],
            _RUN.format(mpi=plan.mpi, command=plan.command, words=words),
            'on_every_node rm -rf "$scratch" || true  # the job ends as its tasks did\n' if plan.scratch else "",
            _COME_BACK.format(left_file=LEFT_FILE) if plan.warned is Warned.LEAVE else "",
            'exit "$status"\n',
        ]
    )


def _option(option: str) -> str:
    """As it stands after #SBATCH, where sbatch takes quotes for what they are in bash."""
    key, equals, value = option.partition("=")
    return f"{key}={shlex.quote(value)}" if equals else option
