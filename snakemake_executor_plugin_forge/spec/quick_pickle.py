"""Frozen dataclasses with slots, made and pickled in a fraction of the time: what travels with every job."""

from __future__ import annotations

from dataclasses import MISSING, field, fields, make_dataclass
from operator import attrgetter
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)


def quick_to_pickle(cls: Class) -> Class:
    """Have the objects of a dataclass of several fields pickled as the arguments of its constructor, and made quickly.

    What the dataclass itself does lists its fields again with each object: dataclasses._dataclass_getstate().
    """
    values = attrgetter(*(one.name for one in fields(cls)))

    def reduce(self: Any) -> tuple[Class, Any]:
        return cls, values(self)

    setattr(cls, "__reduce__", reduce)  # noqa: B010 - mypy knows no assignment to a method of a class that it cannot see
    setattr(cls, "__init__", _constructor(cls))  # noqa: B010
    return cls


def _constructor(cls: type) -> Any:
    """Return a constructor that takes a fifth of the time of the frozen one, which calls object.__setattr__ per field.

    The object is of a class that is not frozen while it gets its values: both have the same slots.
    """
    named = [(one.name, Any, _again(one)) for one in fields(cls)]
    open_class: Any = make_dataclass(cls.__name__, named, slots=True)
    fill, become = open_class.__init__, object.__setattr__

    def construct(self: Any, *arguments: Any, **options: Any) -> None:
        become(self, "__class__", open_class)
        fill(self, *arguments, **options)
        self.__class__ = cls

    return construct


def _again(one: Any) -> Any:
    """Return the default of a field, for another class."""
    if one.default_factory is not MISSING:
        return field(default_factory=one.default_factory)
    return field() if one.default is MISSING else field(default=one.default)
