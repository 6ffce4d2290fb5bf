"""Data of your own: every kind of source opens, and what is wrong with one is said in a sentence."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image

from sde_toolkit.data import SCALINGS, Dataset, ImageOptions, Scaling, absolute_source, open_data
from sde_toolkit.data.sources.layout import LAYOUTS, arranged, numbers
from sde_toolkit.data.sources.raw import Raw

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(40, 3)) * [1, 10, 100]
IMAGES = RNG.integers(0, 256, (20, 3, 8, 6), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def folder_of_images(folder: Path, images: np.ndarray, owners: list[str] | None = None) -> Path:
    for k, image in enumerate(images):
        directory = folder / owners[k] if owners else folder
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(directory / f"{k:03d}.png")
    return folder


def test_an_npy_file_of_vectors_is_split_and_scaled(tmp_path) -> None:
    dataset = open_data(save(tmp_path / "p.npy", POINTS), held_out=0.25)
    assert dataset.event_shape == (3,)
    assert (len(dataset.train), len(dataset.test)) == (30, 10)
    assert dataset.data_std == pytest.approx(1, abs=1e-6)
    back = dataset.scaling.from_model(torch.cat([dataset.train, dataset.test]).double())
    found = np.sort(back.numpy(), 0)
    np.testing.assert_allclose(found, np.sort(POINTS, 0), rtol=1e-5, atol=1e-4)


def test_per_coordinate_scaling_gives_every_feature_unit_variance(tmp_path) -> None:
    dataset = open_data(save(tmp_path / "p.npy", POINTS), scaling="per_coordinate")
    torch.testing.assert_close(dataset.variance, torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "layout", "event"),
    [
        ((10, 5), "auto", (5,)),
        ((10, 3, 8, 6), "auto", (3, 8, 6)),
        ((10, 8, 6, 3), "auto", (3, 8, 6)),
        ((10, 8, 6), "auto", (1, 8, 6)),
        ((10, 3, 8, 3), "NHWC", (3, 3, 8)),
        ((10, 3, 8, 3), "NCHW", (3, 8, 3)),
    ],
)
def test_layouts(shape, layout, event) -> None:
    x = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    found = arranged(x, layout)
    assert found.shape[1:] == event
    if layout == "NHWC" or shape == (10, 8, 6, 3):
        np.testing.assert_array_equal(found[:, 1], x[..., 1])


@pytest.mark.parametrize(
    ("shape", "kind", "layout", "words"),
    [
        ((10, 3, 8, 3), "u1", "auto", "give data.layout"),
        ((10, 8, 6), "f4", "auto", "give data.layout"),
        ((10, 8, 8, 8), "u1", "auto", "give data.layout"),
        ((10, 2, 2, 2, 2), "f4", "auto", "give data.layout"),
        ((10,), "f4", "auto", r"shape \(N, 1\)"),
        ((10, 3), "f4", "NCHW", "needs 4 dimensions"),
        ((0, 3), "f4", "auto", "N >= 1"),
        ((10, 3), "f4", "HWC", "must be one of"),
    ],
)
def test_layouts_that_would_be_guessed_are_refused(shape, kind, layout, words) -> None:
    with pytest.raises(ValueError, match=words):
        arranged(np.zeros(shape, kind), layout)


def test_flattened_images_are_given_their_shape(tmp_path) -> None:
    path = save(tmp_path / "flat.npy", IMAGES.reshape(20, -1))
    dataset = open_data(path, shape=(3, 8, 6))
    assert dataset.event_shape == (3, 8, 6)
    assert dataset.levels == 256
    with pytest.raises(ValueError, match="must have 144 elements"):
        open_data(path, shape=(3, 8, 7))


@pytest.mark.parametrize(
    ("x", "levels", "words"),
    [
        (np.array([[1, 300]]), 0, r"need data.levels.*1 to 300 \(data.levels=301\)"),
        (np.array([[-1, 3]]), 4, "got values from -1 to 3"),
        (np.array([[0.5, 3]]), 4, "fractions among them"),
        (np.array([[0.0, np.nan]]), 0, r"the first at index \(0, 1\)"),
        (np.array([["a"]]), 0, "must be numbers"),
        (np.array([[1j]]), 0, "must be numbers"),
        (np.array([[1.0]]), -3, "must be 0 or lie in 2"),
        (np.array([[1.0]]), 10**9, "must be 0 or lie in 2"),
    ],
)
def test_numbers_that_are_no_data_are_refused(x, levels, words) -> None:
    with pytest.raises(ValueError, match=words):
        numbers(x, levels)


@pytest.mark.parametrize("kind", ["u2", "u4", "u8", "i8", "i1", "f8"])
def test_integers_of_any_type_are_levels_if_they_are_counted(kind) -> None:
    found, levels = numbers(np.array([[0, 3], [2, 1]], dtype=kind), 4)
    assert levels == 4
    assert found.dtype == np.uint8
    assert numbers(np.array([[0, 999]], dtype="u2"), 1000)[0].dtype == np.int32


def test_whole_floats_in_images_warn(tmp_path) -> None:
    with pytest.warns(UserWarning, match="data.levels=256"):
        open_data(save(tmp_path / "i.npy", IMAGES.astype(np.float32)))


def test_npz_keys_and_labels(tmp_path) -> None:
    labels = np.arange(20) % 4
    np.savez(tmp_path / "d.npz", X=IMAGES, y=labels)
    dataset = open_data(tmp_path / "d.npz", held_out=0.2)
    assert dataset.levels == 256
    assert dataset.labels_train is not None
    assert sorted(torch.cat([dataset.labels_train, dataset.labels_test]).tolist()) == sorted(labels.tolist())
    assert open_data(tmp_path / "d.npz", labels="none").labels_train is None
    np.savez(tmp_path / "two.npz", a=POINTS, b=POINTS)
    with pytest.raises(ValueError, match=r"give data.key; arrays: a \(40, 3\), b \(40, 3\)"):
        open_data(tmp_path / "two.npz")
    assert open_data(tmp_path / "two.npz", key="b").event_shape == (3,)
    with pytest.raises(ValueError, match="has no array 'c'"):
        open_data(tmp_path / "two.npz", key="c")
    np.savez(tmp_path / "short.npz", X=POINTS, y=labels)
    with pytest.raises(ValueError, match="one label per example, got 20 for 40"):
        open_data(tmp_path / "short.npz")


def test_files_that_promise_too_much_or_hold_objects_are_refused(tmp_path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not unpickled"):
        open_data(tmp_path / "o.npy")
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3), }".ljust(117) + "\n"
    body = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + b"12345678"
    (tmp_path / "big.npy").write_bytes(body)
    with pytest.raises(ValueError, match="promises shape"):
        open_data(tmp_path / "big.npy")
    with zipfile.ZipFile(tmp_path / "big.npz", "w") as archive:
        archive.writestr("x.npy", body)
    with pytest.raises(ValueError, match="promises shape"):
        open_data(tmp_path / "big.npz")


def test_a_table_has_names_a_label_column_and_a_unit_for_each_feature(tmp_path) -> None:
    path = tmp_path / "t.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "b", "kind", "c"])
        rows.writerows([x, y, "odd" if k % 2 else "even", z] for k, (x, y, z) in enumerate(POINTS))
    dataset = open_data(path, labels="kind")
    assert dataset.columns == ("a", "b", "c")
    assert dataset.classes == ("even", "odd")
    torch.testing.assert_close(dataset.variance, torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    assert open_data(path, columns="c,a").columns == ("c", "a")
    with pytest.raises(ValueError, match=r"line 2, column 'kind', must be a finite number, got 'even'"):
        open_data(path)
    with pytest.raises(ValueError, match=r"'d' is no column of .*columns: a, b, kind, c"):
        open_data(path, columns="d")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty file"),
        ("a,b\n", "line of names alone"),
        ("1,2\n3\n", "line 2, must have 2 cells, got 1"),
        ("1,2\n3,nan\n", "line 2, column '1', must be a finite number"),
        ("1,2\n3,\n", "line 2, column '1', must be a finite number"),
    ],
)
def test_broken_tables_are_refused(tmp_path, text, words) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        open_data(tmp_path / "t.csv")


def test_separators_and_byte_order_marks(tmp_path) -> None:
    (tmp_path / "t.csv").write_bytes("\ufeffx;y\n1;2\n3;5\n4;4\n".encode())
    assert open_data(tmp_path / "t.csv").columns == ("x", "y")


def test_parquet(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"a": POINTS[:, 0], "k": ["x", "y"] * 20, "b": POINTS[:, 1]})
    parquet.write_table(table, tmp_path / "t.parquet")
    dataset = open_data(tmp_path / "t.parquet", labels="k")
    assert (dataset.columns, dataset.classes) == (("a", "b"), ("x", "y"))
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="must be a parquet file"):
        open_data(tmp_path / "bad.parquet")


def test_a_folder_gives_images_and_its_sub_folders_labels(tmp_path) -> None:
    owners = ["cats" if k % 3 else "dogs" for k in range(20)]
    dataset = open_data(folder_of_images(tmp_path / "f", IMAGES, owners))
    assert dataset.event_shape == (3, 8, 6)
    assert dataset.levels == 256
    assert dataset.classes == ("cats", "dogs")
    assert int((torch.cat([dataset.labels_train, dataset.labels_test]) == 1).sum()) == owners.count("dogs")
    grey = open_data(tmp_path / "f", images=ImageOptions(colour="grey"))
    assert grey.event_shape == (1, 8, 6)


def test_images_of_several_sizes_are_refused_or_made_equal(tmp_path) -> None:
    folder = folder_of_images(tmp_path / "f", IMAGES)
    Image.new("RGB", (12, 16)).save(folder / "zz.png")
    with pytest.raises(ValueError, match=r"must have one size, got 6x8 .* and 12x16"):
        open_data(folder)
    assert open_data(folder, images=ImageOptions(crop=6)).event_shape == (3, 6, 6)
    assert open_data(folder, images=ImageOptions(resize=6)).event_shape == (3, 8, 6)
    with pytest.raises(ValueError, match=r"fewer than data\.crop=7"):
        open_data(folder, images=ImageOptions(crop=7))


def test_transparent_and_broken_images(tmp_path) -> None:
    folder = folder_of_images(tmp_path / "f", IMAGES)
    Image.new("RGBA", (6, 8), (0, 0, 0, 0)).save(folder / "clear.png")
    with pytest.raises(ValueError, match=r"clear.png must be opaque.*data.alpha=flatten"):
        open_data(folder)
    flat = open_data(folder, images=ImageOptions(alpha="flatten"))
    assert int(torch.cat([flat.train, flat.test]).flatten(1).amin(1).max()) == 255  # on white
    (folder / "torn.png").write_bytes((folder / "000.png").read_bytes()[:60])
    (folder / "text.jpg").write_text("no image")
    options = ImageOptions(alpha="flatten")
    with pytest.raises(
        ValueError, match=r"2 of 23 images cannot be read: .*text.jpg.*torn.png.*on_error=skip"
    ):
        open_data(folder, images=options)
    with pytest.warns(UserWarning, match="2 of 23 images"):
        skipped = open_data(folder, images=ImageOptions(alpha="flatten", on_error="skip"))
    assert len(skipped.train) + len(skipped.test) == 21


def test_a_held_out_file_is_the_test_set(tmp_path) -> None:
    path, other = save(tmp_path / "p.npy", POINTS), save(tmp_path / "q.npy", POINTS[:7] + 1)
    dataset = open_data(path, held_out=other)
    assert (len(dataset.train), len(dataset.test)) == (40, 7)
    back = dataset.scaling.from_model(dataset.test.double())
    np.testing.assert_allclose(back.numpy(), POINTS[:7] + 1, rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="fraction in"):
        open_data(path, held_out=1.5)
    with pytest.raises(ValueError, match="does not exist"):
        open_data(path, held_out="nowhere.npy")


def test_the_split_is_seeded_and_its_parts_are_disjoint(tmp_path) -> None:
    path = save(tmp_path / "p.npy", np.arange(100.0).reshape(-1, 1))
    one, again, other = (open_data(path, split_seed=seed, scaling="none") for seed in (3, 3, 4))
    assert torch.equal(one.test, again.test)
    assert not torch.equal(one.test, other.test)
    assert sorted(torch.cat([one.train, one.test]).flatten().tolist()) == list(range(100))


def test_the_digest_is_of_the_values_and_is_checked(tmp_path) -> None:
    path = save(tmp_path / "p.npy", POINTS)
    digest = open_data(path).digest
    np.savez(tmp_path / "p.npz", POINTS)
    assert open_data(tmp_path / "p.npz").digest == digest
    assert open_data(path, digest=digest, split_seed=1).digest == digest
    save(path, POINTS + 1e-9)
    with pytest.raises(ValueError, match="must be those of the run"):
        open_data(path, digest=digest)
    assert Raw(POINTS).digest() != Raw(POINTS.reshape(60, 2)).digest()


def make_points() -> np.ndarray:
    return POINTS


def make_pair() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(IMAGES), torch.arange(20) % 2


def make_dataset() -> Dataset:
    return Dataset("mine", torch.randn(9, 2), torch.randn(3, 2), Scaling.identity())


def make_torch_dataset() -> torch.utils.data.Dataset:
    return torch.utils.data.TensorDataset(torch.from_numpy(POINTS), torch.arange(40) % 3)


def make_trouble() -> None:
    raise RuntimeError("no luck")


def test_functions_by_their_dotted_path() -> None:
    here = __name__
    assert open_data(f"{here}:make_points").event_shape == (3,)
    assert open_data(f"{here}:make_pair").labels_train is not None
    assert open_data(f"{here}:make_torch_dataset").labels_test is not None
    assert len(open_data(f"{here}:make_dataset").digest) == 64
    for name, words in {
        f"{here}:make_trouble": "failed: RuntimeError: no luck",
        f"{here}:nothing": "has no function",
        f"{here}:POINTS": "must be a function",
        "no_such_module_here:make": "there is no module 'no_such_module_here'",
    }.items():
        with pytest.raises(ValueError, match=words):
            open_data(name)


def test_hugging_face_from_disk(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in IMAGES]
    made = datasets.Dataset.from_dict({"image": pictures, "label": [k % 2 for k in range(20)]})
    made.save_to_disk(str(tmp_path / "d"))
    dataset = open_data(f"hf:{tmp_path / 'd'}")
    assert (dataset.event_shape, dataset.levels) == ((3, 8, 6), 256)
    assert dataset.labels_train is not None


def test_sources_are_found_from_any_directory(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute_source("p.npy") == absolute_source("~/p.npy") == str((tmp_path / "p.npy").resolve())
    assert absolute_source("package.module:function") == "package.module:function"
    assert absolute_source("hf:mnist") == "hf:mnist"


def test_mirror_images_are_part_of_the_law(tmp_path) -> None:
    path = save(tmp_path / "i.npy", IMAGES)
    dataset = open_data(path, flip="horizontal")
    both = torch.cat([dataset.train, dataset.train.flip(-1)]).double()
    plain = Dataset("both", both.to(torch.uint8), dataset.test, dataset.scaling)
    torch.testing.assert_close(dataset.mean, plain.mean)
    torch.testing.assert_close(dataset.covariance, plain.covariance)
    batch = dataset.batch(3, 50, seed=1)
    assert torch.equal(batch, dataset.batch(3, 50, seed=1))
    levels = dataset.scaling.to_levels(batch)
    known = {tuple(v.flatten().tolist()) for v in both}
    assert {tuple(v.flatten().tolist()) for v in levels} <= known
    originals = {tuple(v.flatten().tolist()) for v in dataset.train}
    share = np.mean([tuple(v.flatten().tolist()) in originals for v in levels])
    assert 0.2 < share < 0.8  # half of 50, off by more than this once in 1e5
    with pytest.raises(ValueError, match="flip mirrors images"):
        open_data(save(tmp_path / "p.npy", POINTS), flip="horizontal")


def opened_or_refused(source: str | Path, **options) -> Dataset | None:
    """The data set; None if it was refused, with a ValueError that names the source."""
    try:
        return open_data(source, **options)
    except ValueError as error:
        sentence = str(error)
    assert str(source) in sentence or repr(source) in sentence or Path(source).name in sentence
    return None


ANY_ARRAY = arrays_of.arrays(
    st.one_of(
        arrays_of.integer_dtypes(), arrays_of.unsigned_integer_dtypes(), arrays_of.floating_dtypes(),
        arrays_of.boolean_dtypes(), arrays_of.complex_number_dtypes(), arrays_of.unicode_string_dtypes(),
    ),
    arrays_of.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:data are whole numbers")
@settings(max_examples=150, deadline=None)
@given(ANY_ARRAY, st.sampled_from(LAYOUTS), st.sampled_from([0, 2, 256]), st.sampled_from(SCALINGS))
def test_any_array_is_taken_or_refused_with_a_sentence(tmp_path_factory, x, layout, levels, scaling) -> None:
    path = save(tmp_path_factory.getbasetemp() / "any.npy", x)
    taken = opened_or_refused(path, layout=layout, levels=levels, scaling=scaling)
    assert taken is None or taken.batch(0, 2, 0).isfinite().all()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([".npy", ".npz", ".csv"]), st.integers(0, 300))
def test_damaged_files_are_refused_with_a_sentence(tmp_path_factory, noise, suffix, cut) -> None:
    folder = tmp_path_factory.getbasetemp()
    good = folder / "good.npy"
    np.savez(good.with_suffix(".npz"), x=POINTS)
    save(good, POINTS)
    good.with_suffix(".csv").write_text("\n".join(",".join(map(str, row)) for row in POINTS))
    whole = good.with_suffix(suffix).read_bytes() if suffix != ".parquet" else b"PAR1"
    path = folder / f"damaged{suffix}"
    path.write_bytes(whole[:cut] + noise + whole[cut + len(noise) :])
    opened_or_refused(path)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30).filter(lambda text: text.strip("./~ ")))
def test_any_name_of_a_source_opens_or_is_refused_with_a_sentence(source) -> None:
    opened_or_refused(source)
