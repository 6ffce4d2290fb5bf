"""The store: nothing is lost, whoever writes; what it holds comes back equal."""

import json
import math
import sqlite3
import threading
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.lab import Record, Reference, Store, export_records, load_records, save_records
from sde_toolkit.lab.records import identity, record_of
from sde_toolkit.metrics import Estimate

ESTIMATE = Estimate(0.5, 0.1, "by hand", (0.5, 0.4, 0.6), "three groups", 2.0)
RECORD = Record(
    "ddim", 10, 10.0, "energy distance", 0.5, 0.1, 2.5, 100, (0,), {"eta": 0.0, "sampler": "ddim"}, "ring",
    1.5, 12345, (ESTIMATE,), {"versions": {"torch": "2"}},
)  # fmt: skip
REFERENCE = Reference("energy distance", "100 real examples", 0.01, 0.02, {"real": "test"})


def test_what_is_written_comes_back(tmp_path):
    store = Store(tmp_path / "records.sqlite")
    assert store.records() == []
    assert store.references() == []
    assert not store.path.exists()
    other = replace(RECORD, num_steps=None, estimates=(Estimate(1.0, 2.0, "normal"),), network_seconds=None)
    store.add([RECORD, other], [REFERENCE])
    assert store.records() == [RECORD, other]
    assert store.references() == [REFERENCE]
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith("lock")) == ["records.sqlite"]


def test_a_record_of_the_same_thing_is_replaced(tmp_path):
    store = Store(tmp_path / "records.sqlite")
    store.add([RECORD, replace(RECORD, seeds=(1,))])
    store.add([replace(RECORD, value=0.7, seconds=9.0)])
    assert [(r.seeds, r.value) for r in store.records()] == [((0,), 0.7), ((1,), 0.5)]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    options=st.dictionaries(st.text(max_size=6), PLAIN, max_size=4),
    values=st.lists(FINITE, min_size=5, max_size=5),
    text=st.text(max_size=10),
    seeds=st.lists(st.integers(0, 2**50), min_size=1, max_size=3, unique=True),
    steps=st.none() | st.integers(1, 10**7),
)
def test_any_record_survives_the_store_and_the_file(tmp_path_factory, options, values, text, seeds, steps):
    nfe, value, error, seconds, network = values
    estimates = tuple(Estimate(value, error, text, (value, error), text) for _ in seeds)
    record = Record(
        text,
        steps,
        nfe,
        text,
        value,
        error,
        seconds,
        10,
        tuple(seeds),
        options,
        text,
        network,
        None,
        estimates,
    )
    folder = tmp_path_factory.mktemp("any")
    store = Store(folder / "records.sqlite")
    store.add([record])
    save_records(folder / "records.json", [record])
    for found in (*store.records(), *load_records(folder / "records.json")[0]):
        assert found == record
        assert identity(found) == identity(record)


def test_many_writers_lose_nothing(tmp_path):
    rows = [replace(RECORD, num_steps=n) for n in range(1, 41)]
    threads = [threading.Thread(target=Store(tmp_path / "s.sqlite").add, args=([row],)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.num_steps for r in Store(tmp_path / "s.sqlite").records()) == list(range(1, 41))


def test_stores_and_files_are_merged_and_what_is_known_stays(tmp_path):
    one, other = Store(tmp_path / "one.sqlite"), Store(tmp_path / "other.sqlite")
    one.add([RECORD], [REFERENCE])
    other.add([replace(RECORD, value=0.9), replace(RECORD, seeds=(1,))], [replace(REFERENCE, label="halves")])
    save_records(tmp_path / "third.json", [replace(RECORD, seeds=(2,))])
    assert one.merge(other.path) == 2
    assert one.merge(tmp_path / "third.json") == 1
    assert [(r.seeds, r.value) for r in one.records()] == [((0,), 0.5), ((1,), 0.5), ((2,), 0.5)]
    assert [r.label for r in one.references()] == ["100 real examples", "halves"]
    with pytest.raises(ValueError, match="which is no file"):
        one.merge(tmp_path / "none.sqlite")


@pytest.mark.parametrize("content", [b"", b"{}", b"SQLite format 3\x00" + b"x" * 4000, "another", "later"])
def test_other_files_are_refused_and_kept(tmp_path, content):
    path = tmp_path / "records.sqlite"
    if content == "another":
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (a)")
        connection.close()
    elif content == "later":
        Store(path).add([RECORD])
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version=99")
        connection.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    if content == b"":  # an empty file is an empty store
        assert Store(path).records() == []
        return
    for call in (Store(path).records, lambda: Store(path).add([RECORD])):
        with pytest.raises(ValueError, match=r"records.sqlite is not a store of records .* move it away"):
            call()
    assert path.read_bytes() == before


def test_damaged_rows_are_named(tmp_path):
    store = Store(tmp_path / "records.sqlite")
    store.add([RECORD])
    connection = sqlite3.connect(store.path)
    connection.execute("UPDATE records SET seeds = '[0.5]'")
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match="record 0: seeds"):
        store.records()


def test_exports_hold_every_record(tmp_path):
    rows = [RECORD, replace(RECORD, num_steps=None, settings={"rtol": 1e-3, "parts": [1, 2], "eta": "one"})]
    for name in ("r.json", "r.csv", "r.parquet"):
        export_records(tmp_path / name, rows, [REFERENCE])
    assert load_records(tmp_path / "r.json") == (rows, [REFERENCE])
    head, one, two = (tmp_path / "r.csv").read_text().splitlines()
    assert head.startswith(
        "problem,sampler,num_steps,nfe,metric,value,standard_error,num_samples,seeds,seconds"
    )
    assert one.startswith("ring,ddim,10,10.0,energy distance,0.5,0.1,100,0,2.5,1.5,12345,")
    assert '"[1, 2]"' in two
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(tmp_path / "r.parquet").to_pydict()
    assert table["value"] == [0.5, 0.5]
    assert table["num_steps"] == [10, None]
    assert table["settings.rtol"] == [None, 1e-3]
    with pytest.raises(ValueError, match=r"must end in .json, .csv or .parquet, got 'r.xls'"):
        export_records(tmp_path / "r.xls", rows)


def test_infinite_numbers_of_estimates_survive_json(tmp_path):
    record = replace(RECORD, estimates=(Estimate(1.0, 2.0, "normal"),))
    save_records(tmp_path / "r.json", [record])
    json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    (found,), _ = load_records(tmp_path / "r.json")
    assert found.estimates[0].degrees_of_freedom == math.inf


def test_estimates_of_earlier_versions_are_read():
    row = asdict(replace(RECORD, estimates=(Estimate.from_replicates([0.0] * 21, "ten groups"),)))
    (entry,) = row["estimates"]
    for name in ("scheme", "count", "step"):
        del entry[name]
    (found,) = record_of(json.loads(json.dumps(row, default=list))).estimates
    assert found == Estimate.from_replicates([0.0] * 21, "ten groups")


def test_counts_and_halves_come_back(tmp_path):
    estimate = Estimate.from_replicates([0.5] * 41, "g", scheme="halves", count=100.0, step=0.01)
    store = Store(tmp_path / "records.sqlite")
    store.add([replace(RECORD, estimates=(estimate,))])
    ((found,),) = (record.estimates for record in store.records())
    assert found == estimate
    assert found.interval() == estimate.interval()
