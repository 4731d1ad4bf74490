"""The house's `dataclass` behaves as the library's does."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import FrozenInstanceError, field, fields, replace

import pytest

from kvasir import records


def example(dataclass, frozen):
    """A family of classes as one of both makes it."""

    @dataclass(frozen=frozen)
    class Point:
        x: int
        y: int = 2
        seen: list[int] = field(default_factory=list, compare=False)
        secret: str = field(default="s", repr=False)
        own: int = field(default=7, init=False)

    @dataclass(frozen=frozen)
    class Named(Point):
        name: str = "n"

        def __post_init__(self) -> None:
            if self.name == "bad":
                raise ValueError("a bad name")

        def __repr__(self) -> str:
            return f"<{self.name}>"

    return Point, Named


@pytest.fixture(params=[True, False], ids=["frozen", "mutable"])
def both(request):
    """The same classes from the library and from the house."""
    theirs = example(dataclasses.dataclass, request.param)
    return list(zip(theirs, example(records.dataclass, request.param), strict=True))


CALLS = [((1,), {}), ((1, 5), {"secret": "t"}), ((), {"x": 3, "seen": [4]}), ((1, 2, [3], "s"), {})]


@pytest.mark.parametrize(("args", "named"), CALLS)
def test_objects_have_the_same_fields_and_the_same_words(both, args, named):
    for theirs, ours in both:
        a, b = theirs(*args, **named), ours(*args, **named)
        assert [getattr(a, f.name) for f in fields(a)] == [getattr(b, f.name) for f in fields(b)]
        assert repr(a) == repr(b)
        assert theirs.__match_args__ == ours.__match_args__
        assert dataclasses.asdict(a) == dataclasses.asdict(b)


@pytest.mark.parametrize(("args", "named"), [((), {}), ((1,), {"z": 1}), ((1, 2, [], "s", 7, 8), {})])
def test_wrong_arguments_are_refused_in_the_same_words(both, args, named):
    for theirs, ours in both:
        said = []
        for kind in (theirs, ours):
            with pytest.raises(TypeError) as error:
                kind(*args, **named)
            said.append(str(error.value))
        assert said[0] == said[1]


def test_equality_and_hashes_follow_the_same_fields(both):
    for pair in both:
        told = []
        for kind in pair:
            a, b, c = kind(1), kind(1, seen=[9]), kind(1, 3)
            told.append([a == b, a == c, a != c, a == 1, kind.__hash__ is None])
            if kind.__hash__ is not None:
                told[-1] += [hash(a) == hash(b), hash(a) == hash(c)]
        assert told[0] == told[1]
    (_, point), (_, named) = both
    assert point(1) != named(1)


def test_frozen_objects_cannot_be_changed_and_others_can():
    frozen, _ = example(records.dataclass, True)
    a = frozen(1)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'x'"):
        a.x = 2
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'x'"):
        del a.x
    mutable, _ = example(records.dataclass, False)
    b = mutable(1)
    b.x = 2
    assert b == mutable(2)


def test_each_object_gets_a_default_of_its_own(both):
    for _, ours in both:
        a, b = ours(1), ours(1)
        a.seen.append(1)
        assert b.seen == []


def test_a_field_without_a_default_after_one_with_is_refused():
    @records.dataclass
    class Wrong:
        a: int = 1
        b: str

    with pytest.raises(SyntaxError):
        Wrong(1, "x")


def test_what_follows_construction_runs_and_replace_constructs_anew(both):
    for _, ours in both[1:]:
        assert replace(ours(1), y=5) == ours(1, 5)
        with pytest.raises(ValueError, match="a bad name"):
            ours(1, name="bad")


@records.dataclass(frozen=True)
class Plain:
    a: int
    b: tuple[int, ...] = ()


@records.dataclass(eq=False)
class Alone:
    a: int = 0


def test_objects_are_copied_pickled_and_matched():
    one = Plain(1, (2,))
    assert copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == replace(one, a=1) == one
    match one:
        case Plain(a, b):
            assert (a, b) == (1, (2,))
    assert {one: 1}[Plain(1, (2,))] == 1
    assert Alone(1) != Alone(1) and len({Alone(), Alone()}) == 2
    assert "".join(map(repr, (one, Alone(3)))) == "Plain(a=1, b=(2,))Alone(a=3)"
