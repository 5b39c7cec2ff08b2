# SPDX-License-Identifier: Apache-2.0
"""What the state of a run consists of: collected from a trainer, and put back into one."""

import functools
import os
import shlex
import signal
import time
from typing import Any

from dnnlib.util import UserError
from metrics import real_cache
from torch_utils import distributed, misc, training_stats
from training import checkpoint, guards
from training.phases import load_optimizer

_COUNTERS = ("cur_nimg", "cur_tick", "iteration", "tick_start_nimg", "new_tick", "attempt", "metric_values", "about")
_MOST_ROLLBACKS = 3  # to the same state


class Keeper:
    """Saves and restores the state of `trainer` (a training.training_loop.Trainer), and guards it.

    Unless the opposite is said, every process must call each method.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.file = checkpoint.StateFile(trainer.options.run_dir)
        self._saved_at = time.monotonic()
        self._saved_nimg: int | None = None
        self._rollbacks = 0  # since the last state was saved
        self._checked: int | None = None  # the iteration after which weights were last found finite

    def is_due(self) -> bool:
        """Whether the last state is old enough for another. Any process may call it."""
        minutes = self.trainer.options.save_every
        return minutes is not None and time.monotonic() - self._saved_at >= minutes * 60

    def check(self, means: dict[str, float]) -> None:
        """Raise Diverged if weights, the state of the loss, or `means` of statistics are not finite."""
        trainer = self.trainer
        trained = {phase.name: phase.module for phase in _phases_of_terms(trainer)}
        what = guards.not_finite({**trainer.networks, **trained}, trainer.loss, means)
        if what is None:
            self._checked = trainer.iteration
            return
        last = "no state was saved" if self._saved_nimg is None else f"the last good state is of {self._kimg()}"
        raise guards.Diverged(
            f"{what} became infinite or NaN after kimg {trainer.tick_start_nimg / 1000:g} and by kimg "
            f"{trainer.cur_nimg / 1000:g}; {last}: go on from there with other random numbers by "
            f"--resume={trainer.options.run_dir} --on-nan=rollback, or start anew with a smaller learning rate or "
            f"larger --gamma"
        )

    def save(self) -> None:
        """Save the state, in the background. Raises Diverged instead if it is not finite."""
        if self._checked != self.trainer.iteration:  # the end of a tick has just done it
            self.check({})
        self._write()
        self._saved_at, self._saved_nimg, self._rollbacks = time.monotonic(), self.trainer.cur_nimg, 0

    def _write(self) -> None:
        state = self._collect()
        if state is not None:
            self.file.save(state)

    def wait(self) -> None:
        """Wait until the last state is on the disk."""
        self.file.wait()
        distributed.barrier()

    def load(self) -> None:
        """Continue from the state in the run directory. Raises UserError if it does not fit."""
        self._restore(checkpoint.load(self.trainer.options.run_dir))
        self._saved_nimg, self._checked = self.trainer.cur_nimg, None

    def roll_back(self, error: guards.Diverged) -> None:
        """Return to the last state, from where other random numbers are drawn. Raises `error` if that is not wanted."""
        trainer = self.trainer
        if trainer.options.on_nan != "rollback" or self._saved_nimg is None or self._rollbacks == _MOST_ROLLBACKS:
            raise error
        self.wait()
        attempt = trainer.attempt + 1
        distributed.print0(f"{str(error).split(';')[0]}: back to {self._kimg()}, attempt {attempt}")
        self.load()
        trainer.attempt, self._rollbacks = attempt, self._rollbacks + 1
        self._write()  # a run that ends here does not begin with the attempts that have failed

    def how_to_continue(self, signum: int) -> str:
        """The last line of a run that a signal has stopped. Any process may call it."""
        name, run_dir = signal.Signals(signum).name, shlex.quote(os.fspath(self.trainer.options.run_dir))
        return f"Stopped by {name}; the state of {self._kimg()} is saved: continue with train.py --resume={run_dir}"

    @functools.cached_property
    def _data(self) -> dict[str, Any]:
        """The data set as it is when the run begins or continues."""
        return _describe(self.trainer)

    def _kimg(self) -> str:
        return f"kimg {self._saved_nimg / 1000:g}"

    def _collect(self) -> dict[str, Any] | None:
        """The state, in process 0; None in the others."""
        trainer = self.trainer
        ada = None if trainer.ada is None else trainer.ada.state_dict()
        ranks = distributed.gather(checkpoint.on_cpu({"stats": training_stats.pending(), "ada": ada}))
        if not distributed.is_main():
            return None
        networks = {name: dict(misc.named_params_and_buffers(net)) for name, net in trainer.networks.items()}
        return {
            **{name: getattr(trainer, name) for name in _COUNTERS},
            "batches": trainer.reals.taken,
            "data": self._data,
            "networks": networks,
            "optimizers": [optimizer.state_dict() for optimizer in _optimizers(trainer)],
            "loss": trainer.loss.state_dict() if hasattr(trainer.loss, "state_dict") else {},
            "log": trainer.log.state_dict(),
            "ranks": ranks,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        trainer = self.trainer
        self._check_fit(state)
        for name in _COUNTERS:
            setattr(trainer, name, state[name])
        trainer.reset_reals(state["batches"])
        for name, network in trainer.networks.items():
            saved = state["networks"][name]
            for key, tensor in misc.named_params_and_buffers(network):
                tensor.detach().copy_(saved[key])
        for optimizer, saved in zip(_optimizers(trainer), state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        if hasattr(trainer.loss, "load_state_dict"):
            trainer.loss.load_state_dict(state["loss"])
        # With another number of processes the first one takes over the sums of all that there were.
        ranks = state["ranks"]
        if len(ranks) == trainer.options.num_gpus:
            ranks = [ranks[trainer.rank]]
        elif trainer.rank > 0:
            ranks = [_nothing(rank) for rank in ranks]
        training_stats.load_pending([rank["stats"] for rank in ranks], trainer.device)
        if trainer.ada is not None:
            trainer.ada.load_state_dict([rank["ada"] for rank in ranks])
        trainer.log.load_state_dict(state["log"], trainer.cur_nimg // 1000)

    def _check_fit(self, state: dict[str, Any]) -> None:
        """Raises UserError if the data set or the networks are not those of the state."""
        trainer, where = self.trainer, f"--resume={self.trainer.options.run_dir}"
        if state["data"] != self._data:
            what = ", ".join(name for name, value in self._data.items() if state["data"].get(name) != value)
            path = trainer.options.training_set_kwargs.get("path")
            raise UserError(f"{where}: the data set {path} is another one than when the run began ({what}); restore it")
        for name, network in trainer.networks.items():
            saved = state["networks"][name]
            for key, tensor in misc.named_params_and_buffers(network):
                if key not in saved or saved[key].shape != tensor.shape:
                    raise UserError(f"{where}: its state does not fit the options of the run ({key} of {name})")


def _nothing(rank: dict[str, Any]) -> dict[str, Any]:
    """What `rank` has saved for itself, with all its names, as if there had been no images."""
    ada = rank["ada"] and {**rank["ada"], "signs": rank["ada"]["signs"] * 0}
    stats = {**rank["stats"], "reports": {name: {} for name in rank["stats"]["reports"]}}
    return {"stats": stats, "ada": ada}


def _phases_of_terms(trainer) -> list:
    """The phases in which terms of the loss train networks of their own."""
    return trainer.loss.extra_phases() if hasattr(trainer.loss, "extra_phases") else []


def _optimizers(trainer) -> list:
    """The optimisers of the family, each once: phases share them. Terms of the loss save their own."""
    own = {id(phase.optimizer) for phase in _phases_of_terms(trainer)}
    unique = {id(phase.optimizer): phase.optimizer for phase in trainer.phases}
    return [optimizer for key, optimizer in unique.items() if key not in own]


def _describe(trainer) -> dict[str, Any]:
    """What the data set has to be like when the run continues."""
    data, path = trainer.training_set, trainer.options.training_set_kwargs.get("path")
    archive = isinstance(path, str) and os.path.isfile(path)  # the files of a folder may be new copies
    return {
        "images": len(data),
        "shape": list(data.image_shape),
        "labels": list(data.label_shape),
        "contents": real_cache.dataset_fingerprint(path) if archive else None,
    }
