"""Columns of tables, and classes by name: each number where it belongs, nothing changed in silence."""

import datetime

import numpy as np
import pytest

from jaxnet import data
from jaxnet.errors import ConfigError, DataError, DTypeError

TABLE = {
    "age": [3, 7, 5, 1],
    "price": [0.5, 1.5, 2.5, 3.5],
    "sold": [True, False, True, True],
    "colour": ["red", "blue", "red", "green"],
    "kind": ["dog", "cat", "dog", "eel"],
}
TEXTS = {
    "rooms": ["3", " 4"],
    "gaps": ["3", ""],
    "day": np.array(["2020-01-01", "2020-01-02"], "datetime64[D]"),
    "date": [datetime.date(2020, 1, 1)] * 2,
    "price": [1.0, 2.0],
}
CLASSES = {"colour": data.classes(TABLE["colour"]), "kind": data.classes(TABLE["kind"])}


def _pandas(table):
    return pytest.importorskip("pandas").DataFrame(table)


def _categories(table):
    return _pandas(table).astype({"colour": "category", "kind": "category", "age": "Int64"})


def _polars(table):
    return pytest.importorskip("polars").DataFrame(table)


TABLES = {"dict": dict, "pandas": _pandas, "pandas with categories": _categories, "polars": _polars}


@pytest.mark.parametrize("library", TABLES)
def test_features_and_target(library):
    table = TABLES[library](TABLE)
    x, target = data.columns(table, target="kind", classes=CLASSES)
    assert (x.dtype, target.dtype) == (np.float32, np.int32)
    #        age price sold  blue green red
    right = [[3, 0.5, 1, 0, 0, 1], [7, 1.5, 0, 1, 0, 0], [5, 2.5, 1, 0, 0, 1], [1, 3.5, 1, 0, 1, 0]]
    np.testing.assert_array_equal(x, right)
    np.testing.assert_array_equal(target, [1, 0, 1, 2])
    x, target = data.columns(table, target=["price", "age"], features=["sold"])
    np.testing.assert_array_equal(x, [[1], [0], [1], [1]])
    np.testing.assert_array_equal(target, np.float32([[0.5, 3], [1.5, 7], [2.5, 5], [3.5, 1]]))
    (_, price), (_, age) = (data.columns(table, target=name, features=["sold"]) for name in ("price", "age"))
    assert (price.dtype, price.shape, age.dtype) == (np.float32, (4,), np.int32)
    assert data.classes(table["kind"]) == CLASSES["kind"]
    assert data.columns(table, target="age", features=["price"], dtype=np.float64)[0].dtype == np.float64


def test_rows_to_predict_have_no_target_and_any_order():
    table = {"age": [3, 7], "colour": ["red", "blue"], "kind": ["cat", "dog"]}
    classes = {name: data.classes(table[name]) for name in ("colour", "kind")}
    x, _ = data.columns(table, target="kind", classes=classes)
    new = {"colour": ["blue"], "age": [7]}
    np.testing.assert_array_equal(data.columns(new, target=None, features=["age", "colour"], classes=classes), x[1:])
    with pytest.raises(ConfigError, match=r"columns: features must be given where .* trained on, in that order; the t"):
        data.columns(new, target=None, classes=classes)  # whose columns may stand in another order


def test_truths_as_the_target_are_floats():
    _, sold = data.columns(TABLE, target="sold", features=["age"])
    assert (sold.dtype, sold.tolist()) == (np.float32, [1, 0, 1, 1])


@pytest.mark.parametrize(
    ("error", "message", "table", "options"),
    [
        (ConfigError, "target names kin, and the table has the columns age, price", TABLE, {"target": "kin"}),
        (ConfigError, "features names weight", TABLE, {"target": "age", "features": ["weight"]}),
        (ConfigError, "features must name at least one", TABLE, {"target": "age", "features": []}),
        (ConfigError, "age cannot be a feature and the target", TABLE, {"target": "age", "features": ["age"]}),
        (ConfigError, "must be a data frame of pandas or polars or a dict.*got ndarray", np.ones((3, 2)), {"target": "a"}),
        (DTypeError, r"'colour' holds .*no numbers; of words give classes=\{'colour': data.classes\(", TABLE, {"target": "age"}),
        (DTypeError, r"'rooms' holds <U2, no numbers; its texts read as numbers: \[int\(v\) for v in table\['rooms'\]\]", TEXTS, {"target": "price", "features": ["rooms"]}),
        (DTypeError, r"read as numbers: \[float\(v\) for v in table\['rooms'\]\]", TEXTS | {"rooms": ["3", "4.5"]}, {"target": "price", "features": ["rooms"]}),
        (DTypeError, r"'gaps' .*read as numbers but for gaps, first at index 1: fill them, then \[float", TEXTS, {"target": "price", "features": ["gaps"]}),
        (DTypeError, r"'day' .*such as days: \(table\['day'\] - min\(table\['day'\]\)\) / numpy.timedelta64\(1, 'D'\)", TEXTS, {"target": "price", "features": ["day"]}),
        (DTypeError, r"'date' .*such as days: \[v.toordinal\(\) for v", TEXTS, {"target": "price", "features": ["date"]}),
        (ConfigError, r"classes\['kind'\] must be Classes, got \['cat', 'dog'\]; make them with data.Classes\(", TABLE, {"target": "age", "classes": {"kind": ["cat", "dog"]}}),
        (ConfigError, r"classes must be a dict of Classes by column, got \['kind'\]; give classes=\{name:", TABLE, {"target": "age", "classes": ["kind"]}),
        (ConfigError, r"classes must be .*; give classes=\{'a column': them\}", TABLE, {"target": "age", "classes": CLASSES["kind"]}),
        (ConfigError, r"features must be a list of columns, got 'price'; give \['price'\]", TABLE, {"target": "age", "features": "price"}),
        (ConfigError, r"target must be a list of columns, got 3; give \[3\]", TABLE, {"target": 3}),
        (ConfigError, r"target must be a list of columns, got 0; give \[0\]", TABLE, {"target": 0, "features": ["age"]}),
        (DTypeError, r"'part' holds object, no numbers; of words give classes", {"part": ["3", None], "b": [1.0, 2.0]}, {"target": "b"}),
        (DataError, r"column 'a' holds nan at index \(1,\)", {"a": [0.0, np.nan], "b": [1, 2]}, {"target": "b"}),
        (DataError, "column 'a' holds integers up to 16777217, which float32 would change", {"a": [2**24 + 1], "b": [1]}, {"target": "b"}),
        (DataError, "column 'a' holds integers up to 8589934592, which int32 would", {"a": [2**33], "b": [1]}, {"target": "a"}),
        (DataError, "column 'price' holds fractions, which int32 would cut off", TABLE, {"target": "age", "features": ["price"], "dtype": np.int32}),
        (DataError, "the arrays have 1, 2 samples", {"a": [1], "b": [1, 2], "c": [1]}, {"target": "c"}),
        (DataError, "column 'kind': encode: 'yak' .first at index 1. is none of the 3 classes 'cat', 'dog', 'eel'", {"a": [1, 2], "kind": ["cat", "yak"]}, {"target": "kind", "classes": {"kind": CLASSES["kind"]}}),
    ],
)  # fmt: skip
def test_what_columns_refuse(error, message, table, options):
    with pytest.raises(error, match=message):
        data.columns(table, **options)


def test_a_lazy_table_is_collected_by_its_owner():
    with pytest.raises(ConfigError, match=r"table.collect\(\)"):
        data.columns(_polars(TABLE).lazy(), target="age")


def test_classes_there_and_back():
    for values in (["b", "a", "b"], np.array(["b", "a", "b"]), [3, 1, 3], np.array([3, 1, 3]), [True, False], [b"x"]):
        classes = data.classes(values)
        assert list(classes.names) == sorted(set(np.asarray(values).tolist()))
        numbers = classes.encode(values)
        assert numbers.dtype == np.int32
        assert classes.decode(numbers) == np.asarray(values).tolist()
        assert data.Classes(list(classes.names)) == classes
    assert data.Classes(("dog", "cat")).encode(["cat", "dog"]).tolist() == [1, 0]  # the order given
    assert len(data.Classes(("dog", "cat"))) == 2


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("^classes: None at index 1 is no name; fill such gaps", lambda: data.classes(["a", None])),
        ("^classes: nan at index 0 is no name", lambda: data.classes([np.nan])),
        ("^classes: the values are of several kinds, int and str", lambda: data.classes(["a", 1])),
        ("^classes: wanted a name a sample, got 'cat'", lambda: data.classes("cat")),
        ("lie along one axis, got the shape", lambda: data.classes(np.array([["a"]]))),
        ("^Classes: each class must be named once, got 'a'", lambda: data.Classes(("a", "b", "a"))),
        ("^Classes: each class must be named once", lambda: data.Classes(())),
        ("^encode: 'c', 'd' .first at index 1. are none of the 2 classes 'a', 'b'", lambda: data.Classes(("a", "b")).encode(["a", "c", "d", "c"])),
        (r"^decode: the numbers must be integers.*got float64 \(1, 2\); of logits give logits.argmax", lambda: data.Classes(("a", "b")).decode(np.zeros((1, 2)))),
        ("^decode: there are 2 classes, 0 to 1, got -1 to 2", lambda: data.Classes(("a", "b")).decode([-1, 2])),
    ],
)  # fmt: skip
def test_what_classes_refuse(message, call):
    with pytest.raises(DataError, match=message):
        call()


MASKED = np.ma.masked_array(np.arange(6), mask=[0, 1, 0, 0, 0, 0])
DOORS = {
    "classes": lambda: data.classes(MASKED),
    "encode": lambda: data.classes(np.arange(6)).encode(MASKED),
    "a feature": lambda: data.columns({"a": MASKED, "y": np.arange(6)}, target="y"),
    "the target": lambda: data.columns({"a": np.arange(6), "y": MASKED}, target="y"),
    "blocks": lambda: data.blocks(MASKED, np.arange(6), batch_size=2),
    "groups": lambda: data.kfold(6, 2, groups=MASKED),
    "strata": lambda: data.split(6, stratify=MASKED),
    "examples": lambda: next(iter(data.examples([(MASKED, 1.0)] * 2, batch_size=2)(0))),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_loses_a_mask(door):
    with pytest.raises(DataError, match="is a masked array with 1 of 6 entries masked"):
        DOORS[door]()
