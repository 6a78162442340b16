"""Cases: how one is declared, and how a descriptor turns declarations into a plan."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, Union

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.checks import check_choice, check_int
from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.conformance.ids import require_unique, word_of
from sagellm_backend.errors import InvalidArgumentError
from sagellm_backend.spec import describe

if TYPE_CHECKING:
    from sagellm_backend.conformance.exam import Exam

SUITE_VERSION = "2026.1"
"""Version of the cases. Case ids and seeds are stable within one."""

PROFILES = ("core", "stream", "kv", "kernels", "attention", "graph", "collective", "model")
DEPTHS = ("smoke", "standard", "stress")
"""How much is run; a case of one depth runs at every deeper one too."""

_DECLARED = "__conformance_cases__"
_FETCH = "there is no checkpoint here; examples/fetch_model.py fetches it"

CaseFunction = TypeVar("CaseFunction", bound=Callable[..., None])
Params = Mapping[
    str, Union[Sequence[Any], Callable[[CapabilityDescriptor], Sequence[Any]]]  # noqa: UP007
]


@dataclass(frozen=True)
class Case:
    """One case, with the values of its parameters."""

    id: str
    profile: str
    text: str
    function: Callable[[Exam], None] = field(repr=False)
    values: Mapping[str, Any]
    depth: str = "smoke"
    world: int = 1
    devices: int = 1
    requires: tuple[Feature, ...] = ()
    without: Feature | None = None
    checkpoint: bool = False


@dataclass(frozen=True)
class NotApplicable:
    """A case that is not run, and why.

    ``reason`` is ``capability_not_declared``, ``capability_declared``, ``device_count``,
    ``no_values`` (no value of a parameter is declared), ``condition``, ``depth``,
    ``profile_not_requested`` or ``checkpoint_absent``, the only one that depends on the machine and
    not on descriptor and request; ``detail`` says what is missing or in the way.
    """

    id: str
    profile: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Plan:
    """The cases of one run in their order, and those that it leaves out."""

    profiles: tuple[str, ...]
    depth: str
    cases: tuple[Case, ...]
    not_applicable: tuple[NotApplicable, ...]

    @property
    def claimed(self) -> tuple[str, ...]:
        """The profiles with a case that proves a claim, not only refusals of what is absent."""
        found = {case.profile for case in self.cases if case.without is None}
        return tuple(profile for profile in PROFILES if profile in found)

    @property
    def needs_checkpoint(self) -> bool:
        """Whether a case of it runs a model."""
        return any(case.checkpoint for case in self.cases)

    @property
    def digest(self) -> str:
        """``sha256:`` of the suite's version, the request, and the ids of all cases in order."""
        content = {
            "suite": SUITE_VERSION,
            "profiles": self.profiles,
            "depth": self.depth,
            "cases": [case.id for case in self.cases],
            "not_applicable": [[item.id, item.reason] for item in self.not_applicable],
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON data."""
        return {
            "suite": SUITE_VERSION,
            "profiles": list(self.profiles),
            "depth": self.depth,
            "digest": self.digest,
            "cases": [
                {
                    "id": case.id,
                    "profile": case.profile,
                    "text": case.text,
                    "depth": case.depth,
                    "world": case.world,
                    "requires": [feature.value for feature in case.requires],
                    "without": case.without.value if case.without else None,
                }
                for case in self.cases
            ],
            "not_applicable": [vars(item) for item in self.not_applicable],
        }


@dataclass(frozen=True)
class _Declaration:
    """What the decorator was told: a case without values, whose id is the start of theirs."""

    case: Case
    params: Params
    needs: Callable[[CapabilityDescriptor], str | None] | None


def case(
    profile: str,
    *,
    requires: Sequence[Feature] = (),
    without: Feature | None = None,
    params: Params | None = None,
    depth: str = "smoke",
    world: int = 1,
    devices: int = 1,
    checkpoint: bool = False,
    needs: Callable[[CapabilityDescriptor], str | None] | None = None,
) -> Callable[[CaseFunction], CaseFunction]:
    """Declare a function of one :class:`Exam` as a case; its docstring says what it proves.

    The case is planned where all of ``requires`` are declared; with ``without`` only where that
    feature is not, to prove the refusal. ``params`` maps names to values, or to a function from the
    descriptor to values; the case is run for each of their product. ``world`` above 1 runs it in
    that many processes, ``devices`` asks for that many devices, ``checkpoint`` for one on this
    machine. ``needs`` may give a reason why the descriptor does not fit.

    The id is ``profile.function[value-value]``, each value by its ``value``, ``label``, ``name`` or
    ``str()``. Raises :class:`InvalidArgumentError` for a declaration that is not sound.
    """
    check_choice("profile", profile, PROFILES)
    check_choice("depth", depth, DEPTHS)
    check_int("world", world, high=64)
    check_int("devices", devices, high=64)

    def declare(function: CaseFunction) -> CaseFunction:
        name = function.__name__
        text = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
        if not text:
            raise InvalidArgumentError(f"Case {name} has no docstring that says what it proves.")
        declared = function.__globals__.setdefault(_DECLARED, {})
        if name in declared:
            raise InvalidArgumentError(f"{function.__module__} declares the case {name} twice.")
        template = Case(
            id=f"{profile}.{name}",
            profile=profile,
            text=text,
            function=function,
            values={},
            depth=depth,
            world=world,
            devices=devices,
            requires=tuple(map(Feature, requires)),
            without=None if without is None else Feature(without),
            checkpoint=checkpoint,
        )
        declared[name] = _Declaration(template, dict(params or {}), needs)
        return function

    return declare


def all_cases(
    capability: CapabilityDescriptor, modules: Sequence[str] | None = None
) -> tuple[list[Case], list[NotApplicable]]:
    """Every case of the suite that this descriptor makes applicable, and all others with reasons.

    ``modules`` are the names of the modules to collect from, the suite's own if ``None``. The order
    is that of the profiles, then of the modules and of the declarations in them. Raises
    :class:`HarnessError` for a module that cannot be imported and for ids that are not unique.
    """
    declared = [item for name in _names(modules) for item in _declared_in(name)]
    declared.sort(key=lambda item: PROFILES.index(item.case.profile))
    cases: list[Case] = []
    left_out: list[NotApplicable] = []
    for item in declared:
        refusal = _not_applicable(item, capability)
        expanded = [] if refusal else list(_expand(item, capability))
        cases += expanded
        if not expanded:
            left_out.append(refusal or _left_out(item.case, "no_values", ", ".join(item.params)))
    require_unique([*(item.id for item in cases), *(item.id for item in left_out)])
    return cases, left_out


def plan(
    capability: CapabilityDescriptor,
    profiles: Sequence[str] | None = None,
    depth: str = "standard",
    modules: Sequence[str] | None = None,
    *,
    checkpoint: bool = True,
) -> Plan:
    """What a run of ``profiles`` (all if ``None``) at ``depth`` consists of for this descriptor.

    ``checkpoint`` says whether the machine has one. Raises as :func:`all_cases`, and :class:`InvalidArgumentError` for an unknown profile or depth.
    """
    wanted = tuple(check_choice("profile", name, PROFILES) for name in profiles or PROFILES)
    reach = DEPTHS.index(check_choice("depth", depth, DEPTHS))
    found, left_out = all_cases(capability, modules)
    taken: list[Case] = []
    others: list[NotApplicable] = []
    for item in found:
        if item.profile not in wanted:
            others.append(NotApplicable(item.id, item.profile, "profile_not_requested"))
        elif DEPTHS.index(item.depth) > reach:
            others.append(NotApplicable(item.id, item.profile, "depth", item.depth))
        elif item.checkpoint and not checkpoint:
            others.append(_left_out(item, "checkpoint_absent", _FETCH))
        else:
            taken.append(item)
    ordered = tuple(profile for profile in PROFILES if profile in wanted)
    return Plan(ordered, depth, tuple(taken), (*left_out, *others))


def _names(modules: Sequence[str] | None) -> Sequence[str]:
    if modules is not None:
        return modules
    from sagellm_backend.conformance import suite

    return suite.modules()


def _declared_in(name: str) -> Iterable[_Declaration]:
    try:
        module = import_module(name)
    except (Exception, SystemExit) as error:
        raise HarnessError(
            f"Module {name} of the suite cannot be imported: {describe(error)}",
            hint="pip install 'sagellm-backend-core[conformance]'",
        ) from error
    found: dict[str, _Declaration] = vars(module).get(_DECLARED, {})
    return found.values()


def _not_applicable(
    declared: _Declaration, capability: CapabilityDescriptor
) -> NotApplicable | None:
    item = declared.case
    missing = [feature.value for feature in item.requires if feature not in capability.features]
    if missing:
        return _left_out(item, "capability_not_declared", ", ".join(missing))
    if item.without is not None and item.without in capability.features:
        return _left_out(item, "capability_declared", item.without.value)
    count = len(capability.devices)
    # Processes can share the CPU; an accelerator serves one rank of a group.
    wanted = item.devices if capability.device_type == "cpu" else max(item.devices, item.world)
    if wanted > 1 and count < wanted:
        return _left_out(item, "device_count", f"{wanted} are needed, there are {count}")
    condition = declared.needs(capability) if declared.needs else None
    return _left_out(item, "condition", condition) if condition else None


def _left_out(item: Case, reason: str, detail: str) -> NotApplicable:
    return NotApplicable(item.id, item.profile, reason, detail)


def _expand(item: _Declaration, capability: CapabilityDescriptor) -> Iterator[Case]:
    domains = [
        tuple(values(capability) if callable(values) else values) for values in item.params.values()
    ]
    for values in itertools.product(*domains):
        words = "-".join(word_of(item.case.function.__name__, value) for value in values)
        yield replace(
            item.case,
            id=item.case.id + (f"[{words}]" if item.params else ""),
            values=dict(zip(item.params, values, strict=True)),
        )
