"""The optimizers of ``torch.optim``, as they update a weight while its gradient is being computed.

Each is a subclass of its namesake, so that constructor arguments, param groups, state and checkpoints are the same;
only ``step()`` is ours. Those that others have published are in ``published``. The first argument may also be the
model itself, which is then fused (``forge_optim.fuse``).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain, takewhile
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from . import _C
from .compiled import note_held
from .fusion import fuse, is_embedding, is_expected_stored, is_unfused
from .user_line import warn

Schedule = Literal["at_step", "in_backward"]
CollapsePolicy = Literal["auto", "never"]
StateFormat = Literal["fp32", "bf16", "bf16_stochastic", "int8", "fp8"]
WeightFormat = Literal["bf16", "bf16_stochastic", "bf16_plus16", "bf16_plus8"]
Params = nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]

_OPTIONS = """

    Arguments beyond those of ``torch.optim.{name}`` (whose ``foreach`` and ``fused`` change nothing here):

    params: the model, which is then fused, or what ``torch.optim`` takes.
    schedule: "at_step": weights are updated in ``step()``, and everything is as in torch. "in_backward": each weight
        is updated as soon as backward is done with it, and no gradient is kept; clipping, scaling, accumulating or
        reading gradients then raises.
    collapse: "auto": terms that outgrow the dense gradient are multiplied out. "never": they are not.
    exact: norms by the same chain of operations as the update, dense gradients in fp32: the same bits as when every
        gradient is multiplied out, clipped or not.
    state_format: how moments are kept: "fp32", "bf16", "bf16_stochastic", "int8" or "fp8"; None: as a checkpoint brings
        them, else in each weight's own dtype. int8 and fp8 are for matrices of at least 4,096 elements that are no
        embeddings; the others are fp32 then. A param group's "state_format" is for all of its parameters.
    weight_format: how bf16 weights are kept: "bf16" (rounded to nearest), "bf16_stochastic", "bf16_plus16" (with the
        16 bits that bf16 drops from fp32) or "bf16_plus8".
    seed: of stochastic rounding, whose noise depends on this, the parameter's name, the element and the step alone.
    count_rounding: ``forge_optim.report`` says how many updates rounding lost, how many saturated and how many were not
        finite, of weights and moments. No bit depends on it; updates take longer.
    verbose: prints which weights of the model are fused, and why not the rest.

    Parameters are fp32 or bf16 on the CPU. RuntimeError where one is not, or an argument cannot be met.
"""


# Formats that round stochastically, and how the elements of a weight get their random bits (docs/numerics.md).
_STOCHASTIC = {"bf16_stochastic", "int8", "fp8"}
_NOISE_MAPPING = 1


def _canonical(name: str) -> str:
    """A parameter's name without what torch.compile and data-parallel wrappers put before parts of it."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


class StoredGradientWarning(UserWarning):
    """A weight got an ordinary gradient, which takes the memory that it would take without this library."""


class FusedOptimizer(torch.optim.Optimizer):
    """What the optimizers share. To be named before the class of ``torch.optim`` that it stands in for.

    ``param_groups`` and ``state`` are what they are in torch: who changes them, or puts others in their place, changes
    what the next step does.
    """

    _rule: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__signature__" not in vars(cls):
            cls.__signature__ = _signature(cls)

    def __init__(
        self,
        params: Params,
        *args: Any,
        schedule: Schedule = "at_step",
        collapse: CollapsePolicy = "auto",
        exact: bool = False,
        state_format: StateFormat | None = None,
        weight_format: WeightFormat | None = None,
        seed: int = 0,
        count_rounding: bool = False,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        self._options = (schedule, collapse, exact, state_format, weight_format, seed, count_rounding)
        self._engine = _C.HostedOptimizer(self, self._rule, *self._options)
        self._names = WeakIdKeyDictionary()  # of parameters, where they are known
        self._noise_of = WeakIdKeyDictionary()  # of parameters: the name that their noise is keyed by, once it is
        self._told_of = WeakIdKeyDictionary()  # of parameters: why their gradients were stored, as far as warned of
        if isinstance(params, nn.Module):
            fuse(params, verbose=verbose)
            self._names.update({p: name for name, p in params.named_parameters()})
            params = params.parameters()
        # Our update is always fused; torch's own switches would only bring their restrictions along.
        for switch in ("foreach", "fused"):
            kwargs.pop(switch, None)
        super().__init__(params, *args, **kwargs)
        self._engine.check_formats()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._follow()
        super().add_param_group(param_group)
        try:
            self._hold(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            self._bind()
            raise

    def _follow(self) -> None:
        """Looks whether the param groups are those that the engine knows, and lets it know them where they are not."""
        if not self._engine.follows():
            self._bind()

    def _bind(self, check_state: bool = False) -> None:
        """Lets the engine know the param groups as they are or, where one is refused, leaves it as it was."""
        self._engine.begin_following()
        try:
            for group in self.param_groups:
                self._hold(group)
            if check_state:
                self._engine.check_state()
        except BaseException:
            self._engine.cancel_following()
            raise
        self._engine.finish_following()

    def _hold(self, group: dict[str, Any]) -> None:
        self._engine.check_group(group)
        self._note_names(group)
        for parameter, name in zip(group["params"], self._noise_names(group), strict=True):
            self._engine.add(parameter, group, name, is_embedding(parameter))
            note_held(parameter)
            if is_unfused(parameter):
                _C.set_recording(parameter, False)

    def _noise_names(self, group: dict[str, Any]) -> list[str]:
        """What the noise of each parameter is keyed by: its name or, without one, its place. In a checkpoint, so that a
        run goes on with the same noise; where nothing is rounded stochastically it is left out. A parameter keeps its
        own wherever it is put, and a new one gets none that another has."""
        formats = {*self._options[3:5], group.get("state_format")}
        if not formats & _STOCHASTIC:
            return [""] * len(group["params"])
        noise = group.get("noise", {"mapping": _NOISE_MAPPING, "names": []})
        if noise["mapping"] != _NOISE_MAPPING:
            raise RuntimeError(
                f'param_groups: the noise of this checkpoint is mapped as version {noise["mapping"]}, and this library '
                f"maps it as version {_NOISE_MAPPING}; go on with the version that wrote it"
            )
        names = noise["names"]
        if len(names) != len(group["params"]):  # a new group, or somebody has put parameters in or taken some out
            names = self._parameter_names(group)
        used = set(self._noise_of.values())
        for parameter, name in zip(group["params"], names, strict=True):
            if parameter not in self._noise_of:
                self._noise_of[parameter] = _unused(name, used)
                used.add(self._noise_of[parameter])
        names = [self._noise_of[parameter] for parameter in group["params"]]
        if names != noise["names"]:  # of its own: copies of a group share what is in it
            group["noise"] = {"mapping": _NOISE_MAPPING, "names": names}
        return names

    @property
    def _counts_rounding(self) -> bool:
        return self._options[-1]

    def _note_names(self, group: dict[str, Any]) -> None:
        """Names that were given with a group are those of its parameters as long as nobody has edited it."""
        given = group.get("param_names", [])
        if len(given) == len(group["params"]):
            for parameter, name in zip(group["params"], given, strict=True):
                self._names.setdefault(parameter, name)

    def _parameter_names(self, group: dict[str, Any]) -> list[str]:
        """The name of each parameter or, where it is not known, its place among those of all groups."""
        before = sum(len(g["params"]) for g in takewhile(lambda g: g is not group, self.param_groups))
        return [_canonical(self._names.get(p) or str(place)) for place, p in enumerate(group["params"], start=before)]

    def _names_of_all(self) -> list[str]:
        """For users. Two models may have a parameter of one name: then the place tells them apart."""
        names = [name for group in self.param_groups for name in self._parameter_names(group)]
        times = Counter(names)
        return [name if times[name] == 1 else f"{name} ({place})" for place, name in enumerate(names)]

    @torch._disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient, all of them or, where one is refused, none.

        closure: evaluated first, with gradients enabled; its result is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._follow()
        self._update()
        self._warn_of_stored()
        return loss

    def _update(self) -> None:
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch."""
        self._follow()
        super().zero_grad(set_to_none)

    def _warn_of_stored(self) -> None:
        """Says once of each weight that its gradient was an ordinary one, unless ``fuse`` has said so."""
        if not self._engine.has_ordinary_gradients:
            return
        stored = self._engine.ordinary_gradients()
        parameters = [p for group in self.param_groups for p in group["params"]]
        by_reason: dict[str, list[int]] = {}
        for place, reason in ((of_one.parameter, of_one.reason) for of_one in stored):
            told = self._told_of.setdefault(parameters[place], set())
            if reason not in told and not is_expected_stored(parameters[place]):
                by_reason.setdefault(reason, []).append(place)
            told.add(reason)
        if by_reason:
            self._warn_of(by_reason)

    def _warn_of(self, by_reason: dict[str, list[int]]) -> None:
        names_of = self._names_of_all()
        for reason, places in by_reason.items():
            first, more = names_of[places[0]], len(places) - 1
            which = f"{first} and {more} more" if more else first
            warn(
                f"the gradient of {which} is stored, as without this library: {reason} (said once; "
                "forge_optim.report(optimizer).ordinary names all)",
                StoredGradientWarning,
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but moments keep the dtype that they were saved in (or get ``state_format``).

        Where the state is refused, everything stays as it was.
        """
        before = {"state": self.state, "param_groups": self.param_groups, "_noise_of": self._noise_of}
        seen: list[dict[str, Any]] = []
        hook = self.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded))
        try:
            super().load_state_dict(state_dict)  # puts new groups and a new state in their place
            self._noise_of = WeakIdKeyDictionary()
            self._restore_dtypes(seen[-1])
            self._bind(check_state=True)
        except BaseException:
            self.__dict__.update(before)
            raise
        finally:
            hook.remove()
        self._engine.forget_rounding()

    def _restore_dtypes(self, loaded: dict[str, Any]) -> None:
        """torch casts every floating-point state to its parameter's dtype."""
        ids = chain.from_iterable(group["params"] for group in loaded["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for i, parameter in zip(ids, parameters, strict=True):
            for key, value in loaded["state"].get(i, {}).items():
                if isinstance(value, Tensor) and key != "step" and value.dtype != self.state[parameter][key].dtype:
                    self.state[parameter][key] = value.detach().to(device=parameter.device, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_options" in state:  # a copy or an unpickled one; load_state_dict comes here without
            self._names, self._noise_of, self._told_of = (WeakIdKeyDictionary() for _ in range(3))
            self._engine = _C.HostedOptimizer(self, self._rule, *self._options)
            for group in self.param_groups:
                self._hold(group)

    def reset_peak_memory(self) -> None:
        """The peaks in ``forge_optim.report`` start again from now."""
        self._engine.reset_peak_memory()


def _unused(name: str, used: set[str]) -> str:
    """This name or, where it is a place that another parameter's noise is keyed by, a later one."""
    while name in used and name.isdigit():
        name = str(int(name) + 1)
    return name


def _signature(cls: type[FusedOptimizer]) -> inspect.Signature:
    """What a class's constructor takes by name: its own arguments, or its namesake's, and those of all optimizers here.
    Training loops choose the keywords that they pass by it."""
    after = cls.__mro__[cls.__mro__.index(FusedOptimizer) + 1]
    init = cls.__init__ if cls.__init__ is not FusedOptimizer.__init__ else after.__init__
    kinds = inspect.Parameter
    own = [p for p in inspect.signature(init).parameters.values() if p.name != "self"]
    names = {p.name for p in own}
    shared = [
        p
        for p in inspect.signature(FusedOptimizer.__init__).parameters.values()
        if p.kind is kinds.KEYWORD_ONLY and p.name not in names
    ]
    return inspect.Signature([*(p for p in own if p.kind is not kinds.VAR_KEYWORD), *shared])


class SGD(FusedOptimizer, torch.optim.SGD):
    __doc__ = "SGD with momentum, as ``torch.optim.SGD``." + _OPTIONS.format(name="SGD")
    _rule = "SGD"


class Adam(FusedOptimizer, torch.optim.Adam):
    __doc__ = "Adam (arXiv 1412.6980), as ``torch.optim.Adam``." + _OPTIONS.format(name="Adam")
    _rule = "Adam"


class AdamW(FusedOptimizer, torch.optim.AdamW):
    __doc__ = "AdamW (arXiv 1711.05101), as ``torch.optim.AdamW``." + _OPTIONS.format(name="AdamW")
    _rule = "AdamW"


class NAdam(FusedOptimizer, torch.optim.NAdam):
    __doc__ = "Adam with Nesterov momentum (Dozat 2016), as ``torch.optim.NAdam``." + _OPTIONS.format(name="NAdam")
    _rule = "NAdam"


class RAdam(FusedOptimizer, torch.optim.RAdam):
    __doc__ = "Rectified Adam (arXiv 1908.03265), as ``torch.optim.RAdam``." + _OPTIONS.format(name="RAdam")
    _rule = "RAdam"


class Adamax(FusedOptimizer, torch.optim.Adamax):
    __doc__ = "Adamax (arXiv 1412.6980), as ``torch.optim.Adamax``." + _OPTIONS.format(name="Adamax")
    _rule = "Adamax"


class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    __doc__ = "Adagrad (Duchi, Hazan & Singer 2011), as ``torch.optim.Adagrad``." + _OPTIONS.format(name="Adagrad")
    _rule = "Adagrad"


class Adadelta(FusedOptimizer, torch.optim.Adadelta):
    __doc__ = "Adadelta (arXiv 1212.5701), as ``torch.optim.Adadelta``." + _OPTIONS.format(name="Adadelta")
    _rule = "Adadelta"


class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    __doc__ = "RMSprop (Hinton 2012), centered too, as ``torch.optim.RMSprop``." + _OPTIONS.format(name="RMSprop")
    _rule = "RMSprop"


class Rprop(FusedOptimizer, torch.optim.Rprop):
    __doc__ = "Resilient propagation (Riedmiller 1993), as ``torch.optim.Rprop``." + _OPTIONS.format(name="Rprop")
    _rule = "Rprop"


class Adafactor(FusedOptimizer, torch.optim.Adafactor):
    __doc__ = (
        """A second moment of one number a row and column (arXiv 1804.04235), as ``torch.optim.Adafactor``.

    For vectors and matrices. The gradient's products are computed three times: for the sums over rows and columns, for
    the sizes of the update and of the weight, for the weight. ``row_var`` and ``col_var`` are fp32."""
        + _OPTIONS.format(name="Adafactor")
    )
    _rule = "Adafactor"


class Muon(FusedOptimizer, torch.optim.Muon):
    __doc__ = (
        """Orthogonal momentum (kellerjordan.github.io/posts/muon), as ``torch.optim.Muon``; its iteration runs in fp32.

    For matrices. While a weight is updated, two fp32 matrices of its shape and two of its shorter side squared are
    held."""
        + _OPTIONS.format(name="Muon")
    )
    _rule = "Muon"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        given = param_group["params"]
        params = param_group["params"] = [given] if isinstance(given, Tensor) else list(given)
        for entry in params:  # before the others' checks, as torch's constructor has it after them
            p = entry[1] if isinstance(entry, tuple) else entry
            if p.dim() != 2:
                raise ValueError(
                    f"Muon only supports 2D parameters whereas we found a parameter with size: {p.size()}; give it to "
                    "another optimizer, AdamW for one"
                )
        super().add_param_group(param_group)

    def _update(self) -> None:
        self._read_adjustment()
        super()._update()

    def _hold(self, group: dict[str, Any]) -> None:
        self._read_adjustment()
        super()._hold(group)

    def _read_adjustment(self) -> None:
        for group in self.param_groups:
            group["match_rms_adamw"] = group["adjust_lr_fn"] == "match_rms_adamw"


class ASGD(FusedOptimizer, torch.optim.ASGD):
    __doc__ = "Averaged SGD (Polyak & Juditsky 1992), as ``torch.optim.ASGD``." + _OPTIONS.format(name="ASGD")
    _rule = "ASGD"
