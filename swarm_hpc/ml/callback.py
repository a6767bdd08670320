"""Takes an ML program through its training in the swarm, whatever its framework: when to sync, what to load and report.

pytorch.py and keras.py turn the hooks of their framework into calls of `Training`; settings.py has the arguments,
saving.py what a program keeps when its job is to come back.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from swarm_hpc.errors import ConfigError
from swarm_hpc.kernels.arena import Arena
from swarm_hpc.kernels.plan import TensorSpec
from swarm_hpc.ml.adaptive import next_interval
from swarm_hpc.ml.saving import Step, Store
from swarm_hpc.ml.settings import Settings
from swarm_hpc.records import Platform, Progress
from swarm_hpc.sl.channel import LeaveAsked, MlChannel, OpenRequest, Session
from swarm_hpc.sl.frames import finite

REPORT_EVERY_S: Final = 2.0
"""Progress is reported at most this often between the ends of epochs."""
EXIT_CODE: Final = os.EX_TEMPFAIL
"""Of a program that has saved its state and ends, to go on later."""


class Number(Protocol):
    """A float, or what becomes one when it is asked: a tensor on a GPU is not fetched before it is needed."""

    def __float__(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How well a model does; None where unknown."""

    loss: Number | None = None
    metric: Number | None = None
    metric_name: str = ""


class SwarmModel(Protocol):
    """A framework's model, as the swarm sees it."""

    @property
    def platform(self) -> Platform:
        """The framework."""

    def describe(self) -> tuple[tuple[TensorSpec, ...], dict[str, str]]:
        """The tensors of its state, and those that share memory with one of them: name -> name of that one."""

    def write(self, arena: Arena) -> None:
        """Copy the state into the arena."""

    def read(self, arena: Arena) -> None:
        """Copy the arena into the state, in place: dtypes and devices stay."""

    @property
    def in_arena(self) -> bool:
        """The state, or a part of it, lies in the arena: a merge that was given up may have left half of a result."""

    def release(self) -> None:
        """Have no part of the state in the arena any more. May be repeated."""

    def validate(self) -> Scores:
        """Loss and metric on ads_val_data; nothing else about the model changes."""

    def save(self, folder: Path) -> None:
        """Keep model, optimizer and random numbers in files there."""

    def load(self, folder: Path) -> None:
        """Take back what `save` kept. ConfigError where it does not fit."""


class Stage(StrEnum):
    """How far a training is."""

    NEW = "on_train_begin was not called yet"
    TRAINING = "on_train_begin was called already"
    ENDED = "on_train_end was called already: make a new SwarmCallback for another training"
    CLOSED = "the session was closed, by close() or by an error: make a new SwarmCallback for another training"


class Training:
    """One training in the swarm: merges at its begin, every `interval` batches, and at its end.

    With `socket_path` None (loopback) every call returns at once. A call out of order is a ConfigError. Whatever SL
    refuses is raised as the error of errors.py that it names; the session is then over.

    When SL wants the program to leave, or SIGTERM comes, it saves its state (to `store`) at the end of the batch and
    ends by SystemExit. A program that finds a saved state goes on from there: `num_batches`, `num_epochs` and `batch`
    are known from the start, the rest is there after `begin`.
    """

    def __init__(
        self,
        settings: Settings,
        model: SwarmModel,
        socket_path: str | None,
        *,
        store: Store | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.over = False
        """The contract is completed: batches are no longer merged. `end` still loads the final model."""
        self.interval = settings.sync_frequency
        """Batches from merge to merge; changes only with use_adaptive_sync."""
        self._store = store or Store(None)
        self._saved = self._store.step()
        came_from = self._saved or Step()
        self.num_batches = came_from.num_batches
        self.num_epochs = came_from.num_epochs
        """Epochs that have ended."""
        self.batch = came_from.batch
        """Batches since the last of them."""
        self._settings = settings
        self._model = model
        self._socket_path = socket_path
        self._clock = clock
        self._stage = Stage.NEW
        self._channel: MlChannel | None = None
        self._session: Session | None = None
        self.round = came_from.round
        """The model grew from the result of this round; 0: of none."""
        self._since_merge = 0
        self._saved_at = clock()
        self._terminated = False
        self._pid = os.getpid()
        self._scores = Scores()
        self._losses: list[float] = []
        self._reported_at = -REPORT_EVERY_S
        self._reason = ""
        settings.logger.info("SwarmCallback: loopback %s, %s", socket_path is None, settings)

    def begin(self) -> None:
        """Open the session and merge, so that all start equal; one that comes back takes the merged parameters."""
        if self._socket_path is None:
            return
        self._expect(Stage.NEW, "on_train_begin")
        self._stage = Stage.TRAINING
        with self._closing_on_error():
            self._channel = MlChannel.connect(self._socket_path)
            self._channel.on_waiting = self._tell_wait
            self._session = self._channel.open(self._request())
            self._settings.logger.info("in contract %s, round %d", self._session.contract, self._session.round)
            self._heed_sigterm()
            self._start(self._session)

    def batch_end(self, scores: Scores, *, num_batches: int = 1) -> None:
        """Count; merge when it is time."""
        if self._socket_path is None:
            return
        self._expect(Stage.TRAINING, "on_batch_end")
        self.num_batches += num_batches
        self.batch += num_batches
        self._since_merge += num_batches
        self._take(scores)
        with self._closing_on_error():
            self._leave_if_asked()
            if self._since_merge >= self.interval and not self.over:
                self._sync()
            if self._clock() - self._reported_at >= REPORT_EVERY_S:
                self._report()

    def epoch_end(self, epoch: int | None, scores: Scores) -> None:
        """Report. `epoch` is the number of the epoch that ended, from 0; None counts on."""
        if self._socket_path is None:
            return
        self._expect(Stage.TRAINING, "on_epoch_end")
        self.num_epochs = self.num_epochs + 1 if epoch is None else epoch + 1
        self.batch = 0
        self._take(scores)
        with self._closing_on_error():
            self._report()

    def end(self) -> None:
        """Hand in the last parameters, wait for the swarm's final model, load it, and close the session."""
        if self._socket_path is None:
            return
        self._expect(Stage.TRAINING, "on_train_end")
        self._stage = Stage.ENDED
        with self._closing_on_error():
            channel, session = self._opened()
            self._leave_if_asked()
            self._hand_over(session)
            finished = channel.finish(self._settings.checkin_on_train_end)
            self._model.read(session.arena)
            self._store.drop()
        self._settings.logger.info("training ended; the swarm's final model (round %d) was loaded", finished.round)
        self.close()

    def close(self) -> None:
        """End the session. May be repeated."""
        if self._stage is not Stage.ENDED:
            self._stage = Stage.CLOSED
        self._model.release()
        if self._channel is not None:
            self._channel.close()
        if signal.getsignal(signal.SIGTERM) == self._terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _start(self, session: Session) -> None:
        """Go on from the saved state, if there is one, or from the contract's newest parameters if others went on."""
        saved = self._saved
        if saved is not None:
            self._load(saved, session)
        if session.resume and not (saved and saved.round == session.round - 1):
            self._model.read(session.arena)
            self.round, self._since_merge = session.round - 1, 0
        elif self.round == 0 or self._since_merge >= self.interval:
            self._sync()

    def _load(self, saved: Step, session: Session) -> None:
        settings, contract = self._settings, session.contract
        if saved.contract != contract:
            raise ConfigError(
                f"the state in {self._store.saved} is of training contract {saved.contract}, and this is {contract}: "
                "remove the folder to start anew"
            )
        if saved.created_at not in (0, session.created_at) or saved.round >= session.round:
            raise ConfigError(
                f"the state in {self._store.saved} is from after round {saved.round} of another training that was "
                f"called {contract}, too: this one is at round {session.round}; remove the folder to start anew"
            )
        self._model.load(self._store.saved)
        if settings.load_state is not None:
            settings.load_state(self._store.saved)
        self._since_merge = saved.since_merge
        self.interval, self._losses = saved.interval, saved.losses
        settings.logger.info("going on after batch %d, from %s", saved.num_batches, self._store.saved)

    def _save(self) -> bool:
        _, session = self._opened()
        step = Step(
            contract=session.contract,
            created_at=session.created_at,
            round=self.round,
            num_batches=self.num_batches,
            num_epochs=self.num_epochs,
            batch=self.batch,
            since_merge=self._since_merge,
            interval=self.interval,
            losses=self._losses,
        )
        self._saved_at = self._clock()
        return self._store.save(step, self._write_state)

    def _write_state(self, folder: Path) -> None:
        self._model.save(folder)
        if self._settings.save_state is not None:
            self._settings.save_state(folder)

    def _leave_if_asked(self) -> None:
        channel, _ = self._opened()
        reason = "SIGTERM" if self._terminated else channel.leave_reason()
        if reason is not None:
            self._leave(reason)

    def _leave(self, reason: str) -> None:
        """Save, say so, and end the program."""
        if self._session is not None and self._save():
            self._settings.logger.info("%s: saved after batch %d; the program ends", reason, self.num_batches)
            self._opened()[0].saved()
        raise SystemExit(EXIT_CODE)

    def _heed_sigterm(self) -> None:
        """Slurm gives SIGTERM to all processes of a job: it must not end the program before it has saved.

        Left alone where the program has a handler of its own. SL ends a program that does not end by itself.
        """
        is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if is_free and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # a process that the program has forked: it is to end as any other
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        self._terminated = True

    def _request(self) -> OpenRequest:
        tensors, aliases = self._model.describe()
        settings = self._settings
        return OpenRequest(
            platform=self._model.platform,
            tensors=tensors,
            aliases=aliases,
            contract=settings.training_contract,
            min_peers=settings.min_peers,
            merge_method=settings.merge_method,
            node_weight=settings.node_weight,
            checkin_on_train_end=settings.checkin_on_train_end,
            total_epochs=settings.total_epochs,
            goes_on=self._saved is not None,
        )

    def _sync(self) -> None:
        channel, session = self._opened()
        self._hand_over(session)
        synced = channel.sync(
            loss=_finite(self._scores.loss),
            metric=_finite(self._scores.metric),
            epoch=self.num_epochs,
            batch=self.num_batches,
        )
        self._model.read(session.arena)
        self._since_merge, self.round = 0, synced.round
        logger = self._settings.logger
        if synced.late:
            logger.warning("round %d closed without this node; it goes on from the merged parameters", synced.round)
        logger.debug("round %d: parameters of %d nodes merged", synced.round, synced.num_peers)
        if synced.training_over:
            self.over = True
            logger.info("the swarm's training is over (round %d): no further merges", synced.round)
        if self._settings.ads_val_data is not None:
            self._validate()
        save_every_s = self._settings.save_every_s
        if save_every_s and self._clock() - self._saved_at >= save_every_s:
            try:
                self._save()
            except (OSError, RuntimeError) as exc:  # torch raises RuntimeError on a full disk
                logger.warning("the state is not saved, what was saved before stays: %s", exc)

    def _hand_over(self, session: Session) -> None:
        self._model.write(session.arena)
        if self._model.in_arena:
            # told to leave during the merge, it saves that its model grew from no round, and comes back to the newest
            self.round = 0

    def _validate(self) -> None:
        """Judge the merged model; its scores are reported in place of the batches' own."""
        self._scores = self._model.validate()
        loss = self._scores.loss
        if self._settings.use_adaptive_sync and loss is not None:
            self._losses.append(float(loss))
            self.interval = next_interval(self.interval, self._settings.sync_frequency, self._losses)
            self._settings.logger.info("validation loss %g: next merge in %d batches", self._losses[-1], self.interval)

    def _take(self, scores: Scores) -> None:
        """Keep the newest of each figure: many programs tell the loss of a batch, and the metric of an epoch."""
        if self._settings.ads_val_data is not None:
            return
        if scores.loss is not None:
            self._scores = replace(self._scores, loss=scores.loss)
        if scores.metric is not None:
            self._scores = replace(self._scores, metric=scores.metric, metric_name=scores.metric_name)

    def _report(self) -> None:
        channel, session = self._opened()
        self._reported_at = self._clock()
        channel.progress(
            Progress(
                contract=session.contract,
                epoch=self.num_epochs,
                total_epochs=self._settings.total_epochs,
                batch=self.num_batches,
                loss=_finite(self._scores.loss),
                metric=_finite(self._scores.metric),
                metric_name=self._scores.metric_name,
            )
        )

    def _opened(self) -> tuple[MlChannel, Session]:
        assert self._channel is not None and self._session is not None, "begin opens the session"
        return self._channel, self._session

    def _tell_wait(self, reason: str) -> None:
        # once per reason, for it comes again every few seconds
        if reason != self._reason:
            self._settings.logger.warning("waiting: %s", reason)
        self._reason = reason

    def _expect(self, stage: Stage, hook: str) -> None:
        if self._stage is not stage:
            raise ConfigError(f"SwarmCallback.{hook}: {self._stage}")

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            try:
                yield
            except LeaveAsked as exc:
                self._leave(str(exc))
        except BaseException:
            # the channel may be in the middle of a frame
            self._stage = Stage.CLOSED
            self.close()
            raise


def _finite(number: Number | None) -> float | None:
    return None if number is None else finite(float(number))
