"""Import what `_target_` names, and check a component's arguments against its signature.

A component is a mapping such as `{_target_: faces.Faces, root: ./photos, size: 64}`. Built-in components and the user's
are imported and checked in the same way. Foreign code that a run folder names is imported only with `run_code=true`;
see `gradroute.config.doors.foreign`.
"""

import importlib
import inspect
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from gradroute.config.doors import DOORS, OURS, TARGET
from gradroute.errors import UserError, first_line, unknown

# Within gradroute, a configuration may name only classes of these kinds and these functions, so that a run folder made
# by a stranger cannot call anything else, such as a function that writes a file.
KINDS = {base for door in DOORS.values() for base in door.bases}
FUNCTIONS = ("gradroute.models.transformer.build_transformer", "gradroute.reporting.plots_")
PLAIN = (bool, int, float, str)
LISTS = (list, tuple, Sequence)


def add_code_folder(folder: Path) -> None:
    """Make a folder's Python files importable; installed packages take precedence."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)


def locate(target: object, key: str) -> Any:
    """Import the class or function that `target` names; `key` is where the configuration names it.

    Modules in the current folder, and beside and inside a `--config-dir`, are found. Raises: UserError.
    """
    where = f"{key}.{TARGET}={target}"
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{where}: must be the import path of a class or function, such as faces.Faces")
    path, name = ".".join(parts[:-1]), parts[-1]
    add_code_folder(Path.cwd())
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise UserError(f"{where}: importing {path} failed (No module named '{error.name}')") from None
        searched = "searched: the current folder, beside --config-dir, and installed packages"
        raise UserError(f"{where}: there is no module '{path}'; {searched}") from None
    except Exception as error:  # whatever the user's module raises
        raise UserError(f"{where}: importing {path} failed ({type(error).__name__}: {first_line(error)})") from None
    found = getattr(module, name, None)
    if not _may_be_named(found, path):
        valid = [n for n, v in vars(module).items() if n[0] != "_" and _may_be_named(v, path) and _is_of(v, path)]
        raise UserError(f"{key}.{TARGET}: {unknown(f'name in {path}:', name, valid)}")
    return found


def _may_be_named(found: Any, path: str) -> bool:
    """Return whether a configuration may name an object of a module: any callable, but only components of gradroute."""
    if not callable(found) or not f"{path}.".startswith(OURS):
        return callable(found)
    if inspect.isclass(found):
        names = {f"{base.__module__}.{base.__qualname__}" for base in found.__mro__}
        return found.__module__.startswith(OURS) and not names.isdisjoint(KINDS)
    return inspect.isfunction(found) and f"{found.__module__}.{found.__qualname__}".startswith(FUNCTIONS)


def _is_of(found: Any, path: str) -> bool:
    """Return whether a class or function is defined in a module or below it, rather than imported into it."""
    return f"{getattr(found, '__module__', '')}.".startswith(f"{path}.")


def completed(
    function: Callable[..., Any], given: Mapping[str, Any], key: str, supplied: Collection[str] = (),
    besides: Collection[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return the arguments as plain data, checked against the signature, with the defaults of those not given.

    supplied: parameters that the run supplies if the configuration does not. besides: keys that are allowed beside the
    arguments.

    Raises: UserError for an unknown or missing argument, or a value of another type or outside of its range.
    """
    parameters, hints = _signature(function)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    what = getattr(function, "__qualname__", str(function))
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in named and not open_ended:
            valid = ", ".join(n for n in [*named, *besides] if n not in supplied) or "none"
            near = str(unknown("", name, [*named, *besides])).partition("; ")[2]
            hint = near if near.startswith("did you") else f"{what} takes: {valid}"
            raise UserError(f"unknown key '{key}.{name}'; {hint}")
        found[name] = checked(value, hints.get(name, Any), f"{key}.{name}") if name in named else value
    for name, parameter in named.items():
        if name in found or name in supplied:
            continue
        if parameter.default is inspect.Parameter.empty:
            raise UserError(f"{key}.{name}: {what} needs it; give {key}.{name}=")
        default = _plain(_default(function, parameter))
        if _is_plain(default):  # any other default, such as a class, is left to the signature
            found[name] = default
    return found


def construct(function: Callable[..., Any], given: Mapping[str, Any], key: str, **supplied: Any) -> Any:
    """Call a component with checked arguments, and with those `supplied` that its signature has and `given` lacks."""
    parameters, hints = _signature(function)
    arguments = completed(function, given, key, supplied)
    built = {name: _built(value, hints.get(name, Any), f"{key}.{name}") for name, value in arguments.items()}
    return function(**built | {n: v for n, v in supplied.items() if n in parameters and n not in given})


def build(component: Mapping[str, Any], key: str, **supplied: Any) -> Any:
    """Build a component: call its `_target_` with the other keys. Raises: UserError."""
    return construct(locate(component.get(TARGET), key), arguments_of(component), key, **supplied)


def arguments_of(component: Mapping[str, Any]) -> dict[str, Any]:
    """Return a component without its `_target_`."""
    return {name: value for name, value in component.items() if name != TARGET}


def _signature(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    try:
        parameters = dict(inspect.signature(function).parameters)
    except (ValueError, TypeError):
        return {"arguments": inspect.Parameter("arguments", inspect.Parameter.VAR_KEYWORD)}, {}
    source = function.__init__ if inspect.isclass(function) else function
    try:
        return parameters, typing.get_type_hints(source, include_extras=True)
    except Exception:  # annotations that cannot be resolved here are not checked
        return parameters, {}


def _default(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return a parameter's default; for a field of a dataclass, what its factory returns."""
    field = getattr(function, "__dataclass_fields__", {}).get(parameter.name)
    return field.default_factory() if field is not None and field.default is MISSING else parameter.default


def _plain(default: Any) -> Any:
    """Return a default as plain data: a dataclass as a mapping, a tuple as a list."""
    if is_dataclass(default) and not isinstance(default, type):
        return {name: _plain(getattr(default, name)) for name in default.__dataclass_fields__}
    return list(default) if isinstance(default, tuple) else default


def _is_plain(value: Any) -> bool:
    """Return whether a value can be written to a run's configuration."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(inner) for key, inner in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else value is None or isinstance(value, PLAIN)


def _built(value: Any, kind: Any, key: str) -> Any:
    """Convert a checked value to what its parameter takes: build nested components and dataclasses."""
    if isinstance(value, Mapping) and TARGET in value:
        return build(value, key)
    for option in _options(kind):
        inner = typing.get_args(option)
        if is_dataclass(option) and isinstance(option, type) and isinstance(value, Mapping):
            return construct(option, value, key)
        if typing.get_origin(option) in LISTS and isinstance(value, list) and inner:
            return [_built(each, inner[0], f"{key}.{place}") for place, each in enumerate(value)]
    return value


def _options(kind: Any) -> Iterator[Any]:
    """Yield the types that a value may have, without annotations."""
    if typing.get_origin(kind) is Annotated:
        yield from _options(typing.get_args(kind)[0])
    elif typing.get_origin(kind) in (Union, types.UnionType):
        for option in typing.get_args(kind):
            yield from _options(option)
    else:
        yield kind


def checked(value: Any, kind: Any, key: str) -> Any:
    """Return the value, with whole numbers as floats if the type is float. Raises: UserError for another type."""
    if typing.get_origin(kind) is Annotated:
        inner, *limits = typing.get_args(kind)
        value = checked(value, inner, key)
        for limit in limits:
            if value is not None and hasattr(limit, "check"):
                limit.check(key, value)
        return value
    options = list(_options(kind))
    if value is None and any(option in (Any, None, type(None)) for option in options):
        return None
    faults: list[UserError] = []
    for option in typing.get_args(kind) if len(options) > 1 else [kind]:
        try:
            return _of_type(value, option, key) if typing.get_origin(option) is not Annotated else checked(
                value, option, key)  # fmt: skip
        except UserError as error:
            faults.append(error)
    raise faults[0]


def _of_type(value: Any, kind: Any, key: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in inner:
            raise unknown(f"value of {key}:", value, inner)
        return value
    if isinstance(value, Mapping) and TARGET in value:
        return {TARGET: value[TARGET], **completed(locate(value[TARGET], key), arguments_of(value), key)}
    if isinstance(value, Mapping) and is_dataclass(kind) and isinstance(kind, type):
        return completed(kind, value, key)
    base = origin or kind
    if base in LISTS:
        if not isinstance(value, list | tuple):
            raise UserError(f"{key}={value}: must be a list")
        return [checked(each, inner[0] if inner else Any, f"{key}") for each in value]
    if base is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{key}={value}: must be a mapping")
        kinds = inner[1] if inner else Any
        return {name: checked(each, kinds, f"{key}.{name}") for name, each in value.items()}
    if base is type(None) or is_dataclass(kind):
        raise UserError(f"{key}={value}: must be {'null' if base is type(None) else 'a mapping'}")
    if base not in PLAIN:
        return value  # a type that cannot be checked here
    holds = isinstance(value, (int, float) if base is float else base)
    if not holds or (isinstance(value, bool) and base is not bool):
        raise UserError(f"{key}={value}: must be of type {base.__name__}")
    try:
        return float(value) if base is float else value
    except OverflowError:
        raise UserError(f"{key}={value}: must be a number that fits a float") from None
