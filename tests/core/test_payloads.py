"""What goes into a payload comes out, or an error says where it cannot."""

from __future__ import annotations

import contextlib
import json
import math
import string
import typing
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, computed_field

from orchestrator.core.payloads import PayloadConverter, ZlibCodec
from orchestrator.core.signatures import CallSignature
from orchestrator.errors import InvalidDefinition, PayloadMismatch, PayloadNotSerializable, PayloadTooLarge

if typing.TYPE_CHECKING:
    from somewhere import Missing  # type: ignore[import-not-found]

T = TypeVar("T")
AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
ID = UUID("12345678-1234-5678-1234-567812345678")

converter = PayloadConverter()


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Mode(StrEnum):
    FAST = "fast"


class Point(NamedTuple):
    x: int
    at: datetime


class Options(TypedDict, total=False):
    key: bytes
    deadline: timedelta


@dataclass(frozen=True)
class Item:
    sku: str
    price: Decimal
    raw: bytes = b""


@dataclass
class Order:
    id: UUID
    at: datetime
    items: list[Item]
    tags: set[str]
    by_day: dict[date, int]
    anything: Any
    either: str | datetime
    path: Path | None = None
    color: Color = Color.RED
    seen: int = field(default=0, init=False)


class Address(BaseModel):
    model_config = ConfigDict(frozen=True)
    street: str
    number: int = Field(alias="no", default=1)
    since: datetime | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def line(self) -> str:
        return f"{self.street} {self.number}"


class Secretive(BaseModel):
    model_config = ConfigDict(strict=True, ser_json_bytes="base64", val_json_bytes="base64")
    id: UUID
    raw: bytes


class Box(BaseModel, Generic[T]):
    content: T


ORDER = Order(
    id=ID,
    at=AT,
    items=[Item("a", Decimal("9.90"), b"\xff\x00")],
    tags={"x", "y"},
    by_day={date(2026, 1, 1): 2},
    anything=AT,
    either="2026-01-02",
    path=Path("/srv/x"),
)


def there_and_back(value, annotation=Any, using=converter):
    payload = using.encode(value, what="test")
    stored = json.loads(json.dumps(payload, allow_nan=False))
    assert stored == payload
    return using.decode(stored, annotation)


def test_plain_json_stays_as_it_is():
    value = {"id": 1, "name": "Ada", "price": 9.5, "tags": ["a", None, True], "deep": {"x": {}}}
    assert converter.encode(value, what="test") == value
    assert there_and_back(value) == value


def test_a_payload_is_a_snapshot_in_both_directions():
    value = {"items": [1]}
    payload = converter.encode(value, what="test")
    value["items"].append(2)
    assert payload == {"items": [1]}
    decoded: Any = converter.decode(payload, Any)
    decoded["items"].append(3)
    assert payload == {"items": [1]}


@pytest.mark.parametrize(
    "value",
    [
        b"\x00\xff",
        AT,
        datetime(1800, 1, 1, tzinfo=timezone(timedelta(seconds=3208))),
        *(AT.date(), time(1, 2, 3, 4), timedelta(days=-1, microseconds=7)),
        *(Decimal("1.10"), ID, Path("/srv/x")),
        *({1, 2}, frozenset({"a"}), {(1, 2)}),
        *(2**64, -(10**5000), math.inf),
        *("half \ud800", "nul \0", {"key \0": 1}),
        {1: "a", "1": "b", None: "c", ID: "d", (1, (2, 3)): "e"},
        {"a": [b"x", {"b": AT}]},
        {"$bytes": "not a tag"},
        {"$dict": {"$dict": {"$unknown": 1}}},
        {"$codec": "zlib", "data": "x"},
        {"$set": [{"$bytes": "eA=="}]},
        {"$": 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_carry_comes_back_without_an_annotation(value):
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


def test_nan_comes_back_bare_and_annotated():
    assert math.isnan(there_and_back(math.nan))
    assert math.isnan(there_and_back(math.nan, float))
    assert math.isnan(there_and_back([1.0, math.nan], list[float])[1])


@pytest.mark.parametrize(
    "value, annotation",
    [
        (ORDER, Order),
        ([ORDER], list[Order]),
        (Address(street="Main", no=3, since=AT), Address),
        ({"a": Address(street="Main")}, dict[str, Address]),
        (Secretive(id=ID, raw=b"\xff"), Secretive),
        (Box[Address](content=Address(street="x")), Box[Address]),
        (Box[int](content=3), Box[int] | None),
        (None, Box[int] | None),
        *((Color.RED, Color), (Level.LOW, Level), (Mode.FAST, Mode)),
        ({Color.RED: 1}, dict[Color, int]),
        (Point(1, AT), Point),
        ([Point(1, AT)], list[Point]),
        ({"key": b"\xff", "deadline": timedelta(hours=1)}, Options),
        *((ID, UUID), (ID, UUID | None)),
        (b"\xff", bytes),
        ((1, "a"), tuple[int, str]),
        ({1, 2}, set[int]),
        ({Item("a", Decimal(1))}, set[Item]),
        *((frozenset({AT}), frozenset[datetime]), (deque([1, 2]), deque[int])),
        ({1: {2: ID}}, dict[int, dict[int, UUID]]),
        *((Path("x"), Path), (Decimal("1.10"), Decimal), (timedelta(seconds=1), timedelta)),
        (2**70, int),
        ("nul \0", str),
        ([1, "a"], typing.Annotated[list[Any], ["unhashable"]]),
    ],
)
def test_typed_values_come_back_as_their_type(value, annotation):
    back = there_and_back(value, annotation)
    assert back == value
    assert type(back) is type(value)


def test_a_record_is_readable_because_its_fields_know_their_types():
    payload = converter.encode(ORDER, what="test")
    assert payload["id"] == str(ID)
    assert payload["at"] == AT.isoformat()
    assert payload["tags"] == ["x", "y"]
    assert payload["path"] == "/srv/x"
    assert payload["anything"] == {"$datetime": AT.isoformat()}
    assert payload["items"][0] == {"sku": "a", "price": "9.90", "raw": {"$bytes": "/wA="}}


def test_plain_text_for_typed_values_is_accepted_as_people_write_it_in_curl():
    assert converter.decode("2026-01-02T03:04:05Z", datetime) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert converter.decode({"sku": "a", "price": 1}, Item) == Item("a", Decimal(1))


def test_subclasses_become_what_they_stand_for():
    class Text(str):
        __slots__ = ()

    assert there_and_back(OrderedDict({Text("a"): Text("b")})) == {"a": "b"}
    assert there_and_back(Mode.FAST) == "fast"
    assert there_and_back((1, (2,))) == [1, [2]]


def test_sets_are_written_in_one_order():
    assert converter.encode({"b", "a", "c"}, what="test") == {"$set": ["a", "b", "c"]}


@pytest.mark.parametrize(
    "value, place",
    [
        ({"items": [0, 1, object()]}, r"value\.items\[2\]"),
        ({"a b": [object]}, r"value\['a b'\]\[0\]"),
        (Order(ID, AT, [], set(), {}, print, "x"), r"value\.anything"),
        ({Item("a", Decimal(1)): 1}, r"value has the key"),
        (iter([1]), r"value \(list_iterator\)"),
        (Box[Any](content=object()), r"value \(Box\[Any\]\)"),
    ],
)
def test_what_has_no_json_form_is_refused_with_its_place(value, place):
    with pytest.raises(PayloadNotSerializable, match=rf"result of charge: {place}"):
        converter.encode(value, what="result of charge")


def test_arguments_are_named_by_index():
    with pytest.raises(PayloadNotSerializable, match=r"activity charge: args\[1\]\.items\[3\] \(object\)"):
        converter.encode_args([1, {"items": [1, 2, 3, object()]}], what="activity charge")


def test_recursion_and_depth_are_refused_shared_values_are_not():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(PayloadNotSerializable, match="contains itself"):
        converter.encode(loop, what="test")
    deep: Any = []
    for _ in range(199):
        deep = [deep]
    assert there_and_back(deep) == deep
    with pytest.raises(PayloadNotSerializable, match="deeper than 200"):
        converter.encode([deep], what="test")
    shared = [1]
    assert there_and_back([shared, shared]) == [[1], [1]]


def test_nested_lookalikes_stay_within_what_the_reader_accepts():
    value: Any = 1
    for _ in range(99):
        value = {"$a": value}
    assert there_and_back(value) == value


@pytest.mark.parametrize("leaf", [1, b"x"])
def test_shared_structure_cannot_explode(leaf):
    bomb: list[Any] = [leaf]
    for _ in range(100):
        bomb = [bomb, bomb]
    with pytest.raises(PayloadTooLarge):
        converter.encode(bomb, what="test")


def test_too_large_names_size_limit_and_remedy():
    small = PayloadConverter(payload_bytes_max=100)
    assert small.encode("x" * 98, what="test") == "x" * 98
    with pytest.raises(PayloadTooLarge, match=r"result of f: the payload has more than 100 bytes, the limit is 100\. Store"):
        small.encode("x" * 101, what="result of f")
    with pytest.raises(PayloadTooLarge, match=r"102 bytes, the limit is 100"):
        small.encode("ä" * 50, what="result of f")
    with pytest.raises(PayloadTooLarge):
        small.encode(b"x" * 100, what="result of f")


# --- arguments -----------------------------------------------------------------------------------------------------------


def charge(order: Order, amount: int, note: str = "none") -> Address: ...  # type: ignore[empty-body]


def arguments(fn, *payloads, **options):
    return converter.decode_args(list(payloads), CallSignature.of(fn, **options), what="activity charge")


def test_arguments_are_typed_and_defaults_stay_with_the_function():
    payloads = converter.encode_args([ORDER, 3], what="test")
    assert arguments(charge, *payloads) == [ORDER, 3]
    assert arguments(charge, *payloads, "x") == [ORDER, 3, "x"]
    assert CallSignature.of(charge).result is Address
    assert CallSignature.of(charge) is CallSignature.of(charge)


def test_a_missing_argument_is_named():
    with pytest.raises(
        PayloadMismatch, match=r"1 argument\(s\) came for charge\(order: Order, amount: int, note: str\), which misses 'amount'"
    ):
        arguments(charge, {})


def test_a_superfluous_argument_is_refused():
    with pytest.raises(PayloadMismatch, match="takes at most 3"):
        arguments(charge, {}, 1, "x", 4)


def test_a_wrong_type_says_function_parameter_expected_came_and_remedy():
    order = converter.encode(ORDER, what="test")
    with pytest.raises(
        PayloadMismatch, match=r"charge\(\) takes 'amount' as int, but '5' \(str\) came: .*; pass that, or change"
    ) as caught:
        arguments(charge, order, "5")
    assert "\n" not in caught.value.message
    with pytest.raises(PayloadMismatch, match=r"'order' as Order, but .*valid UUID.*at 'id'"):
        arguments(charge, {**order, "id": "x"}, 5)


@pytest.mark.parametrize(
    "payload, annotation",
    [
        *((True, int), (1, bool), (1, str), (1, None)),
        *(({"$bytes": "%"}, Any), ({"$uuid": "x"}, UUID), ({"$decimal": "x"}, Any), ({"$timedelta": "x"}, Any)),
        *(({"$map": [[1]]}, Any), ({"$map": [[{}, 1]]}, Any)),
        ({}, object.__class__),
        ({}, type("Handle", (), {})),
        (2**70, list[int]),
    ],
    ids=str,
)
def test_what_does_not_fit_is_a_mismatch_and_nothing_else(payload, annotation):
    with pytest.raises(PayloadMismatch):
        converter.decode(payload, annotation)


def test_a_failing_post_init_is_a_mismatch_with_its_cause():
    with pytest.raises(PayloadMismatch, match="'nope'") as caught:
        converter.decode({"x": 1}, Picky)
    assert isinstance(caught.value.__cause__, KeyError)


@dataclass
class Picky:
    x: int

    def __post_init__(self) -> None:
        raise KeyError("nope")


def test_hints_that_do_not_resolve_mean_any_one_by_one():
    def task(first: Missing, second: UUID, *others: int) -> Missing: ...

    signature = CallSignature.of(task)
    assert [parameter.annotation for parameter in signature.parameters] == [Any, UUID]
    assert signature.result is Any
    assert arguments(task, {"x": 1}, str(ID), 1, 2) == [{"x": 1}, ID, 1, 2]


def test_methods_bound_and_unbound_and_implicit_optionals():
    class Workflow:
        def run(self, order: Item, note: str = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

    item = Item("a", Decimal(1))
    payload = converter.encode(item, what="test")
    assert arguments(Workflow.run, payload, None, skip_self=True) == [item, None]
    assert arguments(Workflow().run, payload) == [item]


def test_a_keyword_only_parameter_needs_a_default():
    def with_default(a, *, b=1): ...
    def without(a, *, b): ...

    assert len(CallSignature.of(with_default).parameters) == 1
    with pytest.raises(InvalidDefinition, match="wants 'b' by keyword"):
        CallSignature.of(without)


def test_callables_that_tell_nothing_take_anything():
    assert arguments(dict, {"a": 1}) == [{"a": 1}]


# --- codecs --------------------------------------------------------------------------------------------------------------


class Reverse:
    name = "reverse"

    def encode(self, text: bytes, /) -> bytes:
        return text[::-1]

    def decode(self, stored: bytes, /) -> bytes:
        return stored[::-1]


@pytest.mark.parametrize("value", [None, True, {"a": b"x"}, "text", {"$codec": "reverse", "data": "x"}], ids=str)
def test_a_codec_sees_every_payload(value):
    using = PayloadConverter(codec=Reverse())
    assert using.encode(value, what="test")["$codec"] == "reverse"
    assert there_and_back(value, using=using) == value


def test_zlib_shrinks_large_payloads_and_leaves_small_ones_readable():
    using = PayloadConverter(codec=ZlibCodec(), payload_bytes_max=10_000)
    assert using.encode({"a": 1}, what="test") == {"a": 1}
    large = ["x" * 50_000]
    assert there_and_back(large, using=using) == large
    with pytest.raises(PayloadTooLarge):
        using.encode("x" * 200_000, what="test")


def test_a_foreign_codec_and_a_bomb_are_told():
    payload = PayloadConverter(codec=Reverse()).encode(1, what="test")
    with pytest.raises(PayloadMismatch, match="written with codec 'reverse', this process has no codec"):
        converter.decode(payload, int)
    with pytest.raises(PayloadMismatch, match="this process has codec 'zlib'"):
        PayloadConverter(codec=ZlibCodec()).decode(payload, int)
    bomb = PayloadConverter(codec=ZlibCodec()).encode("x" * 100_000, what="test")
    with pytest.raises(PayloadMismatch, match="longer than 1,000 bytes"):
        PayloadConverter(codec=ZlibCodec(inflated_bytes_max=1000)).decode(bomb, str)


# --- properties ----------------------------------------------------------------------------------------------------------

text = st.text(st.characters(codec=None)) | st.sampled_from(["$bytes", "$dict", "$$", "$codec", "data", "$map", "$set"])
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
zones = st.none() | st.just(UTC) | st.integers(-86399, 86399).map(lambda s: timezone(timedelta(seconds=s)))
rich = (
    scalars
    | st.binary()
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.frozensets(st.integers() | st.text(string.printable))
    | st.sets(st.tuples(st.integers(), st.binary()))
)
keys = text | st.integers() | st.none() | st.uuids() | st.binary()
values = st.recursive(rich, lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.dictionaries(text, inner), max_leaves=20)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(values)
def test_any_value_comes_back_without_an_annotation(value):
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.builds(
        Order,
        st.uuids(),
        st.datetimes(timezones=zones),
        st.lists(st.builds(Item, text, st.decimals(allow_nan=False, allow_infinity=False), st.binary())),
        st.sets(st.text(string.printable)),
        st.dictionaries(st.dates(), st.integers()),
        rich,
        text | st.datetimes(),
        st.none() | st.just(Path("x")),
        st.sampled_from(Color),
    ),
)
def test_any_record_comes_back(order):
    assert there_and_back(order, Order) == order


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["$map", "$set", "$int", "$dict", "$str", "a"]), inner),
    )
)
def test_hostile_payloads_decode_or_mismatch(payload):
    with contextlib.suppress(PayloadMismatch):
        converter.decode(payload, Any)
