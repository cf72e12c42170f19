"""Parameter routes: which data may train and move which parameters (SGTM, Shilov et al. 2025, arXiv 2512.05648)."""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn, optim

from gradroute.errors import UserError, unknown
from gradroute.routing.freezing import FrozenSlices, refuse_closure, refuse_processes, shift, still
from gradroute.routing.parameter_regions import ParameterRegion, found_in, norm_in, weight_table
from gradroute.routing.routes import Routes, read_routes, scheduled

_Weights = tuple[float, ...]  # one for each region, in order; groups with equal weights share a backward pass
_Pass = tuple[_Weights, bool]  # and whether its groups stay apart from those with the same weights
_NOWHERE = torch.tensor(False)
_LOCKS: "WeakKeyDictionary[ParameterRouter, threading.Lock]" = WeakKeyDictionary()  # beside routers, which are copied
_FOREIGN = (
    "a backward pass reached parameters that ParameterRouter.backward is weighing in another thread: call backward of "
    "that router in every thread, and checkpoint activations with use_reentrant=False"
)
_Tensors = dict[nn.Parameter, torch.Tensor]  # masks or weights, broadcastable to their parameter


class ParameterRouter:
    """Weights of each group's gradient in each region of parameters, and freezing where they are all 0.

    A gradient of 0 does not freeze a parameter: Adam's moments, momentum and weight decay still move it. Step inside
    `updating`, which keeps what no group in the batch may touch unchanged, optimizer state included:

        router.backward({"retain": retain_loss, "forget": forget_loss, None: penalty})
        with router.updating(optimizer):
            optimizer.step()

    Cost: one backward pass over the retained graph for each distinct weight assignment in the batch; for a batch of a
    single group, no more than a multiplication of the routed gradients and a copy of the frozen slices.
    Create it when the model is complete: it refers to the parameters. One that is frozen as a whole is hidden from the
    optimizer. For one that is frozen in part the 0-dimensional `step` counter advances, so Adam's bias correction
    counts the updates of the whole parameter, and state that the step creates stays at 0 in the frozen slice.

    `routes`: group to region to weight or `Route`; 1 where not named. Where regions overlap, weights multiply.
    `hidden`: regions whose outputs a `Router` weighs by the same routes. No gradient that is to be 0 arrives there, so
    they need no pass of their own, and only freezing is left to do.
    `apart`: groups that share no pass with others, such as those whose loss has weight 0, so that norms are their own.
    `measure`: if set, `backward` fills `norms`: (group or None, region) to the L2 norm of the weighted gradient
    of the group's pass, over all calls since the update; groups that share a pass have the norm of their sum.
    `updating` fills `shifts`: region to the largest change of what is frozen. Both are `()` float64 tensors on the
    device; `last_norms` and `last_shift` are the same as numbers.
    Raises: UserError for unknown names, slices that are empty or out of range, weights that are not finite, or
        requires_grad=False.
    """

    def __init__(
        self, model: nn.Module, regions: Mapping[str, ParameterRegion], groups: Sequence[str], routes: Routes,
        hidden: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.measure, self.norms = False, dict[tuple[str | None, str], torch.Tensor]()
        self.shifts: dict[str, torch.Tensor] = {}
        self._names: dict[nn.Parameter, str] = {}
        self._masks: dict[str, _Tensors] = {}
        named = dict(model.named_parameters(remove_duplicate=False))
        for region_name, region in regions.items():
            found = found_in(model, region_name, region)
            self._names |= {named[name]: name for name in found}
            self._masks[region_name] = {named[name]: mask for name, mask in found.items()}
        self.groups, self.regions = list(groups), dict(regions)
        self.routes = read_routes(routes, groups, regions)
        self.hidden, self.apart = set(hidden), set[str | None]()
        for (group, name), route in self.routes.items():
            if route.forward != 1 and name not in self.hidden:
                raise UserError(f"routes.{group}.{name}.forward={route.forward}: '{name}' has parameters and no "
                                "activations; set it on a region with a site")  # fmt: skip
        self._tables: dict[_Weights, _Tensors] = {}
        self._arrived: dict[_Pass, _Tensors] = {}  # since the last update, if measured
        self._seen: dict[nn.Parameter, list[torch.Tensor]] = {}  # where weights are 0, in each pass since the update
        self._frozen = FrozenSlices()
        self._own: dict[str, _Tensors] = {}  # by region, what is not in it, on the device
        self._scheduled = scheduled(self.routes)
        self._set({pair: route.at(0)[0] for pair, route in self.routes.items()})

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy what is known by the addresses of this one's masks."""
        return self.__dict__ | {"_frozen": FrozenSlices()}

    def at_step(self, step: int) -> None:
        """Set the weights to their value at update `step`, counted from 0; only scheduled routes change."""
        values = {pair: route.at(step)[0] for pair, route in self._scheduled.items()}
        if any(self.values[pair] != value for pair, value in values.items()):
            self._set({**self.values, **values})

    def _set(self, values: dict[tuple[str, str], float]) -> None:
        self.values = values
        groups: list[str | None] = [None, *self.groups]
        every = {group: tuple(self.weight(group, name) for name in self._masks) for group in groups}
        seen = [name not in self.hidden for name in self._masks]
        self._weights = {
            group: tuple(w if own else 1.0 for w, own in zip(weights, seen, strict=True))
            for group, weights in every.items()
        }
        self._tables = {
            weights: weight_table(self._masks, weights) for weights in {*self._weights.values(), *every.values()}
        }
        self._zero = {g: {p: w == 0 for p, w in self._tables[weights].items()} for g, weights in every.items()}
        self._frozen.clear()

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which operations `backward` and an update consist of, for the same groups."""
        return tuple(self.values.values())

    @property
    def last_norms(self) -> dict[tuple[str | None, str], float]:
        """`norms` as numbers; waits for the device."""
        return {key: float(norm) for key, norm in self.norms.items()}

    @property
    def last_shift(self) -> dict[str, float]:
        """`shifts` as numbers; waits for the device."""
        return {region: float(largest) for region, largest in self.shifts.items()}

    def weight(self, group: str | None, region: str) -> float:
        """Return the current weight of a group in a region; the group None stands for losses that are not routed."""
        return self.values.get((group, region), 1.0) if group is not None else 1.0

    def parts(self, region: str) -> dict[nn.Parameter, torch.Tensor]:
        """Return a region's parameters, each with a bool mask that broadcasts to it."""
        return dict(self._masks[region])

    @property
    def kinds(self) -> list[int]:
        """For every group, and for None at the end, the number of the pass that it shares with others, from 0."""
        keys = [(self._weights[group], group in self.apart) for group in (*self.groups, None)]
        return [list(dict.fromkeys(keys)).index(key) for key in keys]

    def backward(self, losses: Mapping[str | None, torch.Tensor], kind: int | None = None) -> None:
        """Add the sum of weight times gradient to `.grad` of all that the losses depend on, also outside the model.

        `losses`: scalar loss of each group in the batch; under None, losses that are not routed. Several calls before
        one update accumulate; a batch that you drop afterwards, without `updating`, still counts for freezing.
        One thread at a time; others wait.
        `kind`: the losses are of rows whose groups are all of this kind, see `kinds`. Other groups' losses are 0, and
        cost no pass; they count for freezing as if they had one. None: rows of any groups.
        Raises: UserError for an unknown group, no losses at all, or a loss that is not scalar or has no gradient; and
            in another thread, for a backward pass of the same parameters without this router.
        """
        passes: dict[_Pass, list[str | None]] = {}
        for group, loss in losses.items():
            if group not in self._weights:
                raise unknown("group in losses:", group, self._weights)
            if loss.numel() != 1 or not loss.requires_grad:
                fault = f"has shape {tuple(loss.shape)} and requires_grad={loss.requires_grad}"
                raise UserError(f"loss of {group!r} {fault}; give scalars with a gradient, leave out absent groups")
            passes.setdefault((self._weights[group], group in self.apart), []).append(group)
        if not passes:
            raise UserError("backward: got no losses; give the loss of every group in the batch")
        with _LOCKS.setdefault(self, threading.Lock()):
            if not (self._arrived and self.measure):  # the first since the update
                self.norms = {}
            if kind is not None:
                self._spare(passes, kind)
            for number, (which, groups) in enumerate(passes.items(), 1):
                self._pass(which, {group: losses[group] for group in groups}, retain=number < len(passes))

    def _spare(self, passes: dict[_Pass, list[str | None]], kind: int) -> None:
        """Leave out the passes of groups of other kinds, whose losses are 0; None has penalties and keeps its own."""
        of = dict(zip((*self.groups, None), self.kinds, strict=True))
        for which, groups in list(passes.items()):
            if None not in groups and of[groups[0]] != kind:
                del passes[which]
                for parameter in self._names:
                    zero = [self._zero[group].get(parameter, _NOWHERE) for group in groups]
                    self._seen.setdefault(parameter, []).extend(zero)

    def _pass(self, which: _Pass, losses: dict[str | None, torch.Tensor], retain: bool) -> None:
        """Run one backward pass of all `losses`; hooks weigh each gradient before it is added to `.grad`."""
        table, arrived, came = self._tables[which[0]], self._arrived.setdefault(which, {}), set[nn.Parameter]()

        thread, ours = threading.get_ident(), set[int]()  # the graph tasks of autograd that are this pass

        def begun(gradient: torch.Tensor) -> None:
            ours.add(torch._C._current_graph_task_id())

        def weigh(parameter: nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
            if threading.get_ident() != thread and torch._C._current_graph_task_id() not in ours:
                raise UserError(_FOREIGN)
            if parameter in table:
                weight = table[parameter] = table[parameter].to(gradient.device)  # moved once
                gradient = (gradient * weight).masked_fill(weight == 0, 0).to(gradient.dtype)  # 0, even from inf
            came.add(parameter)
            if self.measure:
                arrived[parameter] = gradient + arrived.get(parameter, 0)
            return gradient

        with ExitStack() as stack:
            for loss in losses.values():
                stack.callback(loss.register_hook(begun).remove)
            for parameter in self._names:
                stack.callback(parameter.register_hook(partial(weigh, parameter)).remove)
            torch.autograd.backward(list(losses.values()), retain_graph=retain)
        for parameter in self._names:
            seen = self._seen.setdefault(parameter, [])
            if losses.keys() != {None} or parameter in came:  # a penalty need not depend on it
                seen += [self._zero[group].get(parameter, _NOWHERE) for group in losses]
        for region in [name for name in self._masks if self.measure and name not in self.hidden]:
            norm = norm_in(self._masks[region], arrived, self._own.setdefault(region, {}))
            self.norms |= {(group, region): norm for group in losses}

    @contextmanager
    def updating(self, optimizer: optim.Optimizer) -> Iterator[None]:
        """Wrap `optimizer.step()`: elements where every group since the last update has weight 0 do not move.

        They are bit-identical after the block, in the parameters and in state tensors of a parameter's shape. With
        several optimizers, wrap each one's step in its own block.
        Raises: UserError, before the step, if no `backward` came before it, the optimizer holds no routed parameter,
            steps by a closure or has state that is not elementwise, or several processes train.
        """
        held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        routed = [parameter for parameter in self._names if parameter in held]
        if self._names and not routed:
            raise UserError("updating: the optimizer holds no routed parameter; make it from this model's parameters")
        if not all(parameter in self._seen for parameter in routed):
            raise UserError("updating: no backward since the last update; call ParameterRouter.backward before it")
        refuse_processes()
        self._arrived = {}
        # torch's fused SGD fails if only some parameters have momentum, so hide none of them from it
        fused_sgd = isinstance(optimizer, optim.SGD) and any(group["fused"] for group in optimizer.param_groups)
        self.shifts = {}
        with ExitStack() as stack:
            stack.callback(optimizer.register_step_pre_hook(refuse_closure).remove)
            for parameter in routed:
                frozen = self._frozen.by(parameter, self._seen.pop(parameter) or [_NOWHERE])
                if self.measure and frozen.some:
                    held_by = {name: masks[parameter] for name, masks in self._masks.items() if parameter in masks}
                    stack.enter_context(shift(optimizer, parameter, frozen, held_by, self.shifts))
                if frozen.whole and not fused_sgd:
                    parameter.grad = None
                elif frozen.some:
                    stack.enter_context(still(optimizer, parameter, self._names[parameter], frozen))
            yield

    def forget(self) -> None:
        """Let the next update freeze by the backward passes from now on, not by those since the last update."""
        self._seen, self._arrived = {}, {}
