"""`dataclass` as the standard library has it, with methods that are made when they are first called.

The library writes and compiles up to six functions for each class as it is defined.  For the hundred that a
start of Kvasir imports this took 0.13 s, most of the time of its imports, and few of them are called.  Here
only `__init__` is compiled, and by the first object; the other methods are the same for all classes.

Fields, defaults, `replace` and `match` are the library's.  What a program that uses Kvasir makes itself
(`SamplingParams`) has the library's own `dataclass`, so that `help` shows what it takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from functools import cache
from operator import attrgetter
from reprlib import recursive_repr
from typing import Any

__all__ = ["dataclass"]

_library = dataclass


def _dataclass(cls: type | None = None, /, *, frozen: bool = False, eq: bool = True) -> Any:
    """The class with its methods, or a decorator that gives it.  Methods of its own stay."""
    if cls is None:
        return lambda decorated: _dataclass(decorated, frozen=frozen, eq=eq)
    own = frozenset(vars(cls))
    cls.__doc__ = cls.__doc__ or cls.__name__  # else the library writes one, and imports `inspect` for it
    made: Any = _library(init=False, repr=False, eq=False)(cls)
    methods: dict[str, object] = {"__init__": _first_init(made, frozen), "__repr__": _repr}
    if eq:
        methods |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
    if frozen:
        methods |= {"__setattr__": _setattr, "__delattr__": _delattr}
    for name, method in methods.items():
        # A class with an `__eq__` has a `__hash__` of None, which nobody wrote.
        if name not in own or (name == "__hash__" and made.__hash__ is None):
            setattr(made, name, method)
    return made


def _first_init(cls: Any, frozen: bool) -> Callable[..., None]:
    """An `__init__` that puts the compiled one into its place."""

    def init(self: Any, *args: Any, **named: Any) -> None:
        cls.__init__ = _init(cls, frozen)
        cls.__init__(self, *args, **named)

    return init


def _init(cls: Any, frozen: bool) -> Callable[..., None]:
    """What the library would have compiled: it takes the fields, and calls `__post_init__` where there is
    one.
    """
    names: dict[str, Any] = {"_set": object.__setattr__, "_none": MISSING}
    head, body = ["self"], []
    for f in fields(cls):
        value = f.name
        if f.default_factory is not MISSING:
            names[f"_make_{f.name}"], names[f"_default_{f.name}"] = f.default_factory, MISSING
            value = f"_make_{f.name}()" + (f" if {f.name} is _none else {f.name}" if f.init else "")
        elif f.default is not MISSING:
            names[f"_default_{f.name}"] = f.default
        if f.init:
            head.append(f.name + (f"=_default_{f.name}" if f"_default_{f.name}" in names else ""))
        if f.init or f.default_factory is not MISSING:
            body.append(f"_set(self, {f.name!r}, {value})" if frozen else f"self.{f.name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    exec(f"def __init__({', '.join(head)}):\n " + "\n ".join(body or ["pass"]), names)
    init: Any = names["__init__"]
    init.__qualname__, init.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    return init  # type: ignore[no-any-return]


@recursive_repr()
def _repr(self: Any) -> str:
    told = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(told)})"


@cache
def _compared(cls: Any) -> Callable[[Any], Any]:
    """Gives what makes two objects of the class equal."""
    return attrgetter("__class__", *(f.name for f in fields(cls) if f.compare))


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    compared = _compared(self.__class__)
    return compared(self) == compared(other)


def _hash(self: Any) -> int:
    return hash(_compared(self.__class__)(self))


def _setattr(self: Any, name: str, value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


# Under the library's name, and behind a type checker's back: to it, this is the library's `dataclass`.
globals()["dataclass"] = _dataclass
