"""For the ``Trainer`` of transformers: the optimizer that it makes, of this library.

    import forge_optim as forge
    trainer = Trainer(model, args, train_dataset=data, optimizer_cls_and_kwargs=forge.hf.optimizer(model, args))

Trainer makes the optimizer itself, from a class, so that its groups (no weight decay for biases and norms), its
scheduler, clipping, accumulation and checkpoints are what they were: those of ``torch.optim`` can be resumed and back.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import _C
from .fusion import fuse
from .optimizers import SGD, AdamW, FusedOptimizer, Schedule

if TYPE_CHECKING:
    from transformers import TrainingArguments

# What Trainer calls the optimizer of torch that each stands in for.
_THEIR_NAMES: dict[type[FusedOptimizer], str] = {AdamW: "adamw_torch", SGD: "sgd"}


def optimizer(
    model: nn.Module,
    args: TrainingArguments,
    cls: type[FusedOptimizer] = AdamW,
    *,
    schedule: Schedule = "at_step",
    verbose: bool = False,
    **options: Any,
) -> tuple[type[FusedOptimizer], dict[str, Any]]:
    """Fuses the model; returns what Trainer takes as ``optimizer_cls_and_kwargs``.

    model: the very model that Trainer gets, with frozen parameters frozen already.
    cls: any optimizer of this library. Learning rate, betas, eps and weight decay are those of ``args``, of which what
        has betas of its own number keeps them, and what has none its eps; ``args.optim`` is not looked at. Trainer
        keeps SGD's momentum in ``args.optim_args`` ("momentum=0.9").
    schedule: "in_backward" needs ``max_grad_norm=0``, ``gradient_accumulation_steps=1`` and a ``NoGradNorm`` Trainer.
    verbose: prints what is fused.
    options: further arguments of ``cls``, such as ``collapse`` and ``exact``.

    ValueError where Trainer would do with the gradients what cannot be done.
    """
    _check(args, schedule, options)
    kwargs = _their_kwargs(args, cls) | options | {"schedule": schedule}
    fuse(model, verbose)
    return cls, kwargs


def _their_kwargs(args: TrainingArguments, cls: type[FusedOptimizer]) -> dict[str, Any]:
    """What Trainer gives to the namesake in torch.optim, or else what it would give to one like Adam."""
    from transformers import Trainer

    if not issubclass(cls, FusedOptimizer):
        raise TypeError(f"hf.optimizer: {cls.__name__} is none of forge_optim's")
    name = next((name for ours, name in _THEIR_NAMES.items() if issubclass(cls, ours)), None)
    if name is None:
        defaults = cls([nn.Parameter(torch.zeros(1))]).defaults
        adams = dict(betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon)
        like_adam = len(defaults.get("betas", ())) == 2
        return {"lr": args.learning_rate} | {key: x for key, x in adams.items() if like_adam and key in defaults}
    args = copy.copy(args)
    args.optim = name
    return Trainer.get_optimizer_cls_and_kwargs(args)[1]


def _check(args: TrainingArguments, schedule: str, options: dict[str, Any]) -> None:
    if "weight_decay" in options:
        raise ValueError("weight_decay: Trainer gives each group its own; set it in TrainingArguments")
    if not _C.has_kernels(args.device.type):
        raise ValueError(f"Trainer would move the model to {args.device}, for which this library was built without "
                         "kernels; use TrainingArguments(use_cpu=True)")
    if schedule != "in_backward":
        return
    remedy = 'updates weights before Trainer could do so; use {}, or schedule="at_step"'
    if args.max_grad_norm:
        raise ValueError(f'max_grad_norm={args.max_grad_norm} clips gradients, and schedule="in_backward" '
                         + remedy.format("max_grad_norm=0"))
    if args.gradient_accumulation_steps > 1:
        raise ValueError(f"gradient_accumulation_steps={args.gradient_accumulation_steps} adds gradients up, and "
                         'schedule="in_backward" ' + remedy.format("gradient_accumulation_steps=1"))


class NoGradNorm:
    """To be named before Trainer for ``schedule="in_backward"``: ``class MyTrainer(forge.hf.NoGradNorm, Trainer)``.

    Trainer asks for the norm of the gradients after every backward, if only to log it. There are none by then.
    """

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor | None:
        return grad_norm
