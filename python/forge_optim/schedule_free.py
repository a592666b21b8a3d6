"""Schedule-Free optimizers (arXiv 2405.15682), whose weights for training and for evaluation differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _C
from .optimizers import Params
from .published import Betas, Published, group_options


class _ScheduleFree(Published):
    """Of Schedule-Free optimizers: training and evaluation use different weights, so say which comes."""

    _beta: Callable[[dict[str, Any]], float]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        param_group.setdefault("train_mode", False)
        super().add_param_group(param_group)

    def train(self) -> None:
        """Before training: the weights become those that gradients are taken at."""
        self._switch(True)

    def eval(self) -> None:
        """Before evaluation and before saving the model: the weights become the average."""
        self._switch(False)

    @torch.no_grad()
    def _switch(self, train: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == train:
                continue
            group["train_mode"] = train
            beta = type(self)._beta(group)
            ratio = (1 - beta) / beta
            for p in group["params"]:
                state = self.state.get(p, {})
                if (difference := state.get("z_minus_y")) is not None:
                    factor = ratio if train else -ratio
                    low, scale = state.get("weight_low"), state.get("z_minus_y_scale")
                    if low is None and scale is None:
                        p.add_(difference, alpha=factor)
                    else:
                        _C.add_moment_(p, low, difference, scale, factor)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if any("z" in of for of in state.get("state", {}).values()):
            raise RuntimeError("the checkpoint is of the authors' class, which keeps z; start from the weights alone")
        super().__setstate__(state)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if not all(group["train_mode"] for group in self.param_groups):
            raise RuntimeError("the weights are those of evaluation; call optimizer.train() before training")
        return super().step(closure)


class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-Free AdamW (arXiv 2405.15682), as facebookresearch/schedule_free's AdamWScheduleFree.

    ``train()`` before training, ``eval()`` before evaluation. State holds ``z_minus_y`` in place of ``z``.
    """

    _rule = "ScheduleFreeAdamW"
    _beta = staticmethod(lambda group: group["betas"][0])

    def __init__(
        self,
        params: Params,
        lr: float = 0.0025,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        inner_momentum: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(params, group_options(locals()), **options)


class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-Free SGD (arXiv 2405.15682), as facebookresearch/schedule_free's SGDScheduleFree.

    ``train()`` before training, ``eval()`` before evaluation. State holds ``z_minus_y`` in place of ``z``.
    """

    _rule = "ScheduleFreeSGD"
    _beta = staticmethod(lambda group: group["momentum"])

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **options: Any,
    ) -> None:
        super().__init__(params, group_options(locals()), **options)
