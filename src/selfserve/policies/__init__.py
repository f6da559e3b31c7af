"""The registry of policies: by name, a class in a file (``FILE.py:Class``) or a controller (``FILE.safetensors``).

A policy is a class with keyword parameters, each with a default and a type (``bool``, ``int``, ``float``, ``str``, a
``Literal`` of names, or one of these ``| None``), so that ``--set NAME=VALUE`` can be checked before a run.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from selfserve.errors import InputError
from selfserve.planner import peak_minute_rate
from selfserve.protocol import Policy

_BUILT_IN = {
    "static": "static:Static",
    "reactive": "reactive:Reactive",
    "util_aware": "util_aware:UtilAware",
    "exascale": "exascale:Exascale",
    "mixed": "mixed:Mixed",
    "spock": "spock:Spock",
    "paragon": "paragon:Paragon",
    "inferall": "inferall:InferAll",
    "infaas": "infaas:INFaaS",
    "tolerance_tiers": "tolerance_tiers:ToleranceTiers",
    "cocktail": "cocktail:Cocktail",
    "proteus": "proteus:Proteus",
    "forecast_milp": "forecast_milp:ForecastMilp",
    "mark": "mark:Mark",
    "batch": "batch:Batch",
    "clipper": "clipper:Clipper",
    "target_tracking": "target_tracking:TargetTracking",
    "knative": "knative:Knative",
    "ray_serve": "ray_serve:RayServe",
    "tuned": "tuned:Tuned",
    "tuned_fixed": "tuned:TunedFixed",
    "analytic": "analytic:Analytic",
    "controller": "analytic:Learned",
}


def policy_names() -> list[str]:
    """Return the names of the built-in policies, in the order in which tables show them."""
    return list(_BUILT_IN)


def make_policy(name_or_spec: str, **parameters: object) -> Policy:
    """Build a policy.

    Args:
        name_or_spec: a name of :func:`policy_names`, or ``FILE.py:Class``.
        **parameters: its parameters; strings (as from a command line) are read as the parameter's type.

    Raises:
        InputError: unknown name, file or class that cannot be loaded or is no policy, unknown or ill-typed parameter.
    """
    if name_or_spec.endswith(".safetensors"):
        name_or_spec, parameters = "controller", {"file": name_or_spec} | parameters
    cls = _find(name_or_spec)
    hints, known = _parameters(cls)
    values = {}
    for key, value in parameters.items():
        if key not in known:
            raise InputError(f"policy {name_or_spec}: unknown parameter {key} (known: {', '.join(known) or 'none'})")
        values[key] = _read(name_or_spec, key, value, hints.get(key, Any))
    missing = [k for k, p in known.items() if p.default is inspect.Parameter.empty and k not in values]
    if missing:
        raise InputError(f"policy {name_or_spec}: parameter {missing[0]} has no default: give {missing[0]}=VALUE")
    mine = name_or_spec in _BUILT_IN
    policy = cls(**values) if mine else _guarded(name_or_spec, cls.__name__, cls)(**values)
    if not isinstance(policy, Policy) or not (callable(policy.reset) and callable(policy.decide)):
        wanted = "interval_s, reset(scenario, history) and decide(observation)"
        raise InputError(f"policy {name_or_spec}: {cls.__name__} is no policy: a policy has {wanted}")
    return policy if mine else _guard(name_or_spec, policy)


def _guard(spec: str, policy: Policy) -> Policy:
    """Let what a user's policy raises end in one line that says where."""
    with suppress(AttributeError):  # it has slots: then a traceback tells the same
        for method in ("reset", "decide"):
            setattr(policy, method, _guarded(spec, method, getattr(policy, method)))
    return policy


def _guarded(spec: str, method: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*given: object, **named: object) -> Any:
        try:
            return call(*given, **named)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            frames, file = traceback.extract_tb(error.__traceback__), Path(spec.rpartition(":")[0]).name
            last = next((f for f in reversed(frames) if Path(f.filename).name == file), frames[-1])
            where = f"{last.filename}, line {last.lineno}"
            raise InputError(f"policy {spec}: {method} raised {_words(error)} ({where})") from error

    return guarded


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def parameter_names(name_or_spec: str) -> list[str]:
    """Return the parameters that a policy takes."""
    return list(_parameters(_find("controller" if name_or_spec.endswith(".safetensors") else name_or_spec))[1])


def with_hindsight(name_or_spec: str, counts: np.ndarray, parameters: Mapping[str, object]) -> dict[str, object]:
    """Return ``parameters`` plus what an offline choice on the given trace would add (``peak_rate`` where it is known).

    Args:
        name_or_spec: the policy.
        counts: requests per second of the window to be served, shape [seconds].
        parameters: the user's own, which win.
    """
    extra = {"peak_rate": peak_minute_rate(counts)} if "peak_rate" in parameter_names(name_or_spec) else {}
    return {**extra, **parameters}


def _find(spec: str) -> type:
    if spec in _BUILT_IN:
        module, cls = _BUILT_IN[spec].split(":")
        return getattr(importlib.import_module(f"selfserve.policies.{module}"), cls)
    file, separator, name = spec.rpartition(":")
    if not (separator and file.endswith(".py")):
        raise InputError(f"policy {spec}: unknown (known: {', '.join(_BUILT_IN)}, clairvoyant, or FILE.py:Class)")
    found = getattr(_load(spec, Path(file)), name, None)
    if not inspect.isclass(found):
        raise InputError(f"policy {spec}: {file} has no class {name or '(name it after the colon: FILE.py:Class)'}")
    return found


def _load(spec: str, path: Path) -> object:
    if not path.is_file():
        raise InputError(f"policy {spec}: there is no file {path}")
    module_spec = importlib.util.spec_from_file_location(f"selfserve_user_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None  # a .py file always has both
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # where dataclasses look their annotations up
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise InputError(f"policy {spec}: {path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise InputError(f"policy {spec}: importing {path} failed: {_words(error)}") from error
    return module


def _parameters(cls: type) -> tuple[dict[str, Any], dict[str, inspect.Parameter]]:
    keywords = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    known = {k: p for k, p in inspect.signature(cls).parameters.items() if p.kind in keywords}
    hints: dict[str, Any] = {}
    constructor: Any = inspect.getattr_static(cls, "__init__")
    for source in (cls, constructor):  # dataclass fields, then a hand-written constructor
        try:
            hints |= {k: v for k, v in get_type_hints(source).items() if k in known}
        except (NameError, TypeError):  # a name that only exists for type checkers: leave that source unchecked
            continue
    return hints, known


def _read(spec: str, key: str, value: object, hint: Any) -> object:
    """Return ``value`` as the type ``hint`` wants it, reading text where it is text."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in sorted(options, key=lambda o: o is not NoneType):
        try:
            return _as(value, option)
        except (ValueError, OverflowError):
            continue
    raise InputError(f"policy {spec}: {key}={value}: must be {_describe(hint)}")


def _as(value: object, hint: Any) -> object:
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
    elif hint is NoneType:
        if value is None or value == "none":
            return None
    elif hint is bool:
        named = {"true": True, "false": False}.get(str(value).lower())
        if named is not None:
            return named
    elif hint in (int, float):
        if isinstance(value, str | int | float | np.number) and not isinstance(value, bool):
            number = hint(value)
            if hint is float or isinstance(value, str) or number == value:
                return number
    elif hint is str:
        if isinstance(value, str):
            return value
    else:
        return value
    raise ValueError(value)


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(option) for option in get_args(hint))
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "none"}.get(
        hint, str(hint)
    )
