"""The state of learning: networks, averages and optimisers, and what a step does with them."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dasr_ops.models import DASR

from ..batch import Batch
from ..config import TrainConfig
from .averaging import Average
from .networks import build_discriminator, build_restorer
from .objective import Objective, Targets
from .optimizers import build_optimizer, resume_optimizer
from .processes import Processes
from .schedules import factor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NONFINITE = "nonfinite"
_POWER_ITERATIONS = 3
"""Of the spectral norms in a step, as many as the official code's three calls make. They are done
at its start, so that a batch may come in any number of parts."""

_RISE = 200
"""Steps in which the learning rate rises to its course where optimisers begin anew."""

_LEAST_SCALE = 2.0**-14
"""Of losses in float16: gradients that overflow at this factor have no place in that type."""


class Learner:
    """Everything that learning changes.

    A step is `gradients`, which changes no weights, then `update`: between them the run decides
    whether the numbers are sound.

    Args:
        config: the run.
        processes: this process among those of the run.

    Attributes:
        restorer: the network that restores pictures.
        discriminator: its adversary, or None.
        average: the averages of the restorer.
        anew: the step from which optimisers began anew in a run that went on, or None.
        shown: after a step the last LR, SR and ground truth, for the log; None where only P learns.

    Raises:
        TrainingError: a file to start from or a name in the settings cannot be used.
    """

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        self.config, self.processes = config, processes
        engine, device = config.engine, processes.device
        self.memory_format = (
            torch.channels_last if engine.channels_last else torch.contiguous_format
        )
        self.restorer = build_restorer(config).to(device)
        self.discriminator = build_discriminator(config)
        if isinstance(self.restorer.network, DASR):
            self.restorer.network.net_p.to(memory_format=self.memory_format)
        self.average = Average(self.restorer, engine.ema)
        self.anew: int | None = None
        optimizer = config.optimizer
        self.optimizer = build_optimizer(optimizer, self.restorer.parameters(), optimizer.lr)
        self.discriminator_optimizer: torch.optim.Optimizer | None = None
        if self.discriminator is not None:
            self.discriminator.to(device, memory_format=self.memory_format).eval()
            self.discriminator_optimizer = build_optimizer(
                optimizer, self.discriminator.parameters(), optimizer.discriminator_lr
            )
        self.dtype = DTYPES[engine.precision]
        scaled = self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.objective = Objective(config.loss, device, self.memory_format)
        if engine.compile:
            self.restorer.compile()
            if self.discriminator is not None:
                self.discriminator.compile()
        self._restorer = self._distributed(self.restorer)
        self._judge = self.discriminator and self._distributed(self.discriminator)
        self.shown: tuple[Tensor, Tensor, Tensor] | None = None

    def _distributed(self, network: nn.Module) -> nn.Module:
        if not self.processes.many:
            return network
        index = self.processes.device.index
        # Buffers (power iterations) are the same everywhere, as they follow from the weights.
        known = inspect.signature(DistributedDataParallel.__init__).parameters
        option = "forward_sync_buffers"  # its name from PyTorch 2.13 on
        buffers = {option if option in known else "broadcast_buffers": False}
        return DistributedDataParallel(
            network,
            device_ids=None if index is None else [index],
            gradient_as_bucket_view=True,
            **buffers,
        )

    def gradients(self, parts: Sequence[Batch], step: int) -> dict[str, Tensor]:
        """Compute the gradients of a step, averaged over its parts and over the processes.

        Args:
            parts: the batch, in as many parts as are accumulated.
            step: number of the step, from 0.

        Returns:
            Scalars on the device, means over the parts on this process: the weighted losses,
            "loss", norms of gradients, and `NONFINITE`, above 0 where a loss or a gradient is not
            finite.
        """
        adversarial = self.discriminator is not None and step >= self.config.loss.gan.start
        if self.discriminator is not None:
            self.discriminator.iterate_norms(_POWER_ITERATIONS)
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(parts):
            last = number == len(parts) - 1
            targets = Targets(batch, self.memory_format)
            told = self._told(targets.v, step * len(parts) + number)
            values, output = self._restorer_part(targets, told, adversarial, last, len(parts))
            if self.discriminator is not None:
                assert output is not None
                values.update(self._discriminator_part(targets, output, last, len(parts)))
            for name, value in values.items():
                sums[name] = sums.get(name, 0) + value.detach() / len(parts)
            if output is not None:
                self.shown = (targets.lr, output, targets.truth(self.config.loss.pixel.usm))
        sums.update(self._norms())
        # In float16 gradients overflow now and then: the scaler then leaves the step out and scales
        # less. Where that does not help, it would leave out every step.
        lenient = self.scaler.is_enabled() and self.scaler.get_scale() >= _LEAST_SCALE
        sound = [v for name, v in sums.items() if not (lenient and name.endswith("norm"))]
        sums[NONFINITE] = (~torch.isfinite(torch.stack(sound))).any()
        return sums

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.processes.device.type, self.dtype, enabled=enabled)

    def _told(self, v: Tensor, part: int) -> Tensor | None:
        """Return the true vectors that G is told; over many parts they have the wanted share."""
        share = self.config.loss.true_vector * len(v)
        count = math.floor((part + 1) * share) - math.floor(part * share)
        return v[:count] if count else None

    def _restorer_part(
        self, targets: Targets, told: Tensor | None, adversarial: bool, last: bool, count: int
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        judge = self.discriminator if adversarial else None
        if judge is not None:
            judge.requires_grad_(False)
        with _accumulating(self._restorer, not last):
            with self._autocast():
                output, vector = self._restorer(targets.lr, told)
                values = self.objective.restorer(output, vector, targets, judge)
            values["loss"] = torch.stack(list(values.values())).sum()
            self.scaler.scale(values["loss"] / count).backward()
        if judge is not None:
            judge.requires_grad_(True)
        return values, None if output is None else output.detach()

    def _discriminator_part(
        self, targets: Targets, output: Tensor, last: bool, count: int
    ) -> dict[str, Tensor]:
        assert self._judge is not None
        with _accumulating(self._judge, not last):
            with self._autocast():
                values = self.objective.discriminator(self._judge, output, targets)
            self.scaler.scale(values["discriminator"] / count).backward()
        return values

    def _norms(self) -> dict[str, Tensor]:
        self.scaler.unscale_(self.optimizer)
        norms = {"norm": _norm(self.restorer)}
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            self.scaler.unscale_(self.discriminator_optimizer)
            norms["discriminator_norm"] = _norm(self.discriminator)
        if self.config.optimizer.clip_norm:
            torch.nn.utils.clip_grads_with_norm_(
                self.restorer.parameters(), self.config.optimizer.clip_norm, norms["norm"]
            )
        return norms

    def update(self, step: int) -> None:
        """Change the weights by the gradients at hand, and forget those."""
        share = self._share(step)
        for optimizer, lr in self._optimizers():
            for group in optimizer.param_groups:
                group["lr"] = lr * share
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        self.average.update(self.restorer, step)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of G and P in a step."""
        return self.config.optimizer.lr * self._share(step)

    def _share(self, step: int) -> float:
        share = factor(self.config.schedule, step)
        if self.anew is not None:
            share *= min(1.0, (step - self.anew + 1) / _RISE)
        return share

    def _optimizers(self) -> list[tuple[torch.optim.Optimizer, float]]:
        config = self.config.optimizer
        found = [(self.optimizer, config.lr)]
        if self.discriminator_optimizer is not None:
            found.append((self.discriminator_optimizer, config.discriminator_lr))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs, by name; see `load_state_dict`."""
        state: dict[str, Any] = {
            "anew": self.anew,
            "restorer": self.restorer.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any], *, anew: int | None = None) -> None:
        """Go on from `state_dict`.

        A discriminator that the state does not hold stays as it is, averages that it does not hold
        begin at the weights.

        Args:
            state: of the networks of the settings.
            anew: the step from which optimisers begin anew, whatever the state holds, and the
                learning rate rises once more; None: they go on.

        Raises:
            KeyError, RuntimeError, ValueError: the state is of other networks or optimisers.
        """
        self.restorer.load_state_dict(state["restorer"])
        self.average.network.load_state_dict(state.get("average", state["restorer"]))
        self.anew = state.get("anew") if anew is None else anew
        optimizers = anew is None
        if optimizers:
            resume_optimizer(self.optimizer, state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.discriminator_optimizer is not None and "discriminator" in state:
            assert self.discriminator is not None
            self.discriminator.load_state_dict(state["discriminator"])
            if optimizers:
                resume_optimizer(self.discriminator_optimizer, state["discriminator_optimizer"])


def _norm(network: nn.Module) -> Tensor:
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(grads)


@contextlib.contextmanager
def _accumulating(network: nn.Module, more: bool) -> Any:
    """Leave out the exchange of gradients between processes while more parts are to come."""
    if more and isinstance(network, DistributedDataParallel):
        with network.no_sync():
            yield
    else:
        yield
