"""Samples on the scale of the data, as arrays and as pictures, and places refused before the work."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sde_toolkit import cli, runs
from sde_toolkit.config.loading import load_config
from sde_toolkit.data.dataset import from_array
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.samplers import Samples, ddim
from sde_toolkit.sdes import VPSDE

TINY = ["--config.model.width=8", "--config.model.depth=1", "--config.data.num_train=64",
        "--config.data.num_test=40",
        "--config.training.num_steps=3", "--config.training.batch_size=9"]  # fmt: skip


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    path = tmp_path_factory.mktemp("ring")
    assert cli.main(["train", "--config=ring", f"--workdir={path}", *TINY]) == 0
    return path


def drawn(x, scaling, first_sample=0):
    return Samples(x, 1.0, 0.0, 0, first_sample, {}, scaling)


def test_samples_are_given_back_on_the_scale_of_the_data():
    v = torch.arange(64).reshape(4, 1, 4, 4) % 17
    for levels in (17, 256, 65536):
        scaling = Scaling.grey(levels)
        x = scaling.dequantize(v, torch.rand(v.shape, dtype=torch.float64, generator=torch.Generator()))
        data = drawn(x, scaling).data
        assert not data.is_floating_point()
        assert torch.equal(data, v)
    far = drawn(torch.tensor([[-5.0, 5.0]]), Scaling.grey(17)).data
    assert far.tolist() == [[0, 16]]
    w = 100 + torch.randn(50, 3, dtype=torch.float64) * torch.tensor([1.0, 10.0, 1e4])
    scaling = Scaling.standard(w, per_coordinate=True)
    torch.testing.assert_close(drawn(scaling.to_model(w, torch.float64), scaling).data, w)
    with pytest.raises(ValueError, match=r"set model.scaling = dataset.scaling"):
        drawn(v.float(), None).data  # noqa: B018


def test_a_model_hands_its_scaling_to_its_samples():
    model = ExactModel(Gaussian(torch.zeros(2), torch.eye(2)), VPSDE())
    assert ddim(3).sample(model, 2).scaling is None
    model.scaling = from_array(np.random.default_rng(0).normal(5, 2, (100, 2))).scaling
    samples = ddim(3).sample(model, 2)
    torch.testing.assert_close(samples.data, model.scaling.from_model(samples.x))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_of_pictures_has_one_file_for_each_sample(tmp_path, channels):
    v = torch.randint(0, 256, (12, channels, 5, 4), generator=torch.Generator().manual_seed(0))
    scaling = Scaling.grey(256)
    x = scaling.dequantize(v, torch.full((), 0.5))
    runs.write_pictures(drawn(x, scaling, first_sample=999_995), tmp_path / "new" / "pictures")
    names = sorted(os.listdir(tmp_path / "new" / "pictures"))
    assert names == [f"{i:07d}.png" for i in range(999_995, 1_000_007)]
    assert os.listdir(tmp_path / "new") == ["pictures"]
    for i, name in enumerate(names):
        with Image.open(tmp_path / "new" / "pictures" / name) as picture:
            assert picture.mode == ("L" if channels == 1 else "RGB")
            pixels = np.asarray(picture).reshape(5, 4, channels)
            assert np.array_equal(pixels, v[i].permute(1, 2, 0).numpy())


def test_a_folder_of_pictures_is_replaced_whole_and_another_folder_is_not(tmp_path):
    scaling = Scaling.grey(17)
    x = scaling.dequantize(torch.full((5, 1, 2, 2), 16), torch.full((), 0.5))
    folder = tmp_path / "pictures"
    runs.write_pictures(drawn(x, scaling), folder)
    runs.write_pictures(drawn(x[:2], scaling), folder)
    assert sorted(os.listdir(folder)) == ["000000.png", "000001.png"]
    with Image.open(folder / "000001.png") as picture:
        assert np.asarray(picture).min() == 255
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"with 'thesis.txt'"):
        runs.write_pictures(drawn(x, scaling), folder)
    (tmp_path / "link").symlink_to(folder)
    for place in (tmp_path / "link", folder / "thesis.txt"):
        with pytest.raises(ValueError, match="output must be a new folder"):
            runs.write_pictures(drawn(x, scaling), place)
    assert sorted(os.listdir(tmp_path)) == ["link", "pictures"]


@pytest.mark.parametrize(
    ("shape", "scaling"),
    [((2,), Scaling.grey(17)), ((2, 4, 4), Scaling.grey(17)), ((1, 4, 4), Scaling.identity()),
     ((1, 4, 4), None), ((1, 4, 4), Scaling.grey(257)), ((4, 4), Scaling.grey(17))],
)  # fmt: skip
def test_what_is_no_picture_is_refused(tmp_path, shape, scaling):
    with pytest.raises(ValueError, match="a folder of PNGs needs images"):
        runs.write_pictures(drawn(torch.zeros(3, *shape), scaling), tmp_path / "a")
    assert os.listdir(tmp_path) == []


def sample(*words):
    return cli.main(["sample", "--sampler=ddim", "--num_steps=2", "--num_samples=3", *words])


def test_formats_of_the_command_line(tmp_path, capsys):
    assert sample(f"--output={tmp_path}", "--format=png,npz") == 0
    shown = capsys.readouterr().out
    assert "pictures" in shown
    assert "\npicture " not in shown
    assert sorted(os.listdir(tmp_path / "samples")) == ["ddim-2-seed0", "ddim-2-seed0.npz"]
    with np.load(tmp_path / "samples" / "ddim-2-seed0.npz") as arrays:
        assert arrays["data"].dtype == np.uint8
        assert arrays["data"].shape == arrays["x"].shape
        whole = Scaling.grey(17).to_levels(torch.from_numpy(arrays["x"]))
        assert np.array_equal(arrays["data"], whole.numpy())
        for i, v in enumerate(arrays["data"]):
            with Image.open(tmp_path / "samples" / "ddim-2-seed0" / f"{i:06d}.png") as picture:
                assert np.array_equal(np.asarray(picture), np.round(v[0] * (255 / 16)))
    assert sample(f"--output={tmp_path / 'b'}", "--format=grid") == 0
    assert os.listdir(tmp_path / "b" / "samples") == ["ddim-2-seed0.png"]
    with pytest.raises(SystemExit):
        sample("--format=jpg")
    assert "must be one or more of npz, grid, png, got 'jpg'" in capsys.readouterr().err


@pytest.mark.slow
def test_other_options_have_other_names(tmp_path, capsys):
    options = [
        [], ["--config.sampling.eta=1"], ["--config.sampling.eta=0.5"], ["--seed=1"], ["--num_steps=3"],
        ["--config.sampling.t_min=1e-4"], ["--config.sampling.grid=karras"], ["--config.dtype=float64"],
        ["--config.sampling.denoise=false"], ["--config.sampling.threshold=static"],
        ["--config.sampling.threshold=static", "--config.sampling.threshold_limit=2"],
        ["--config.sampling.grid=explicit", "--config.sampling.times=1,0.3,0.001"],
        ["--config.sampling.grid=explicit", "--config.sampling.times=1,0.4,0.001"],
        ["--config.sampling.corrector=langevin"], ["--config.sampling.restart_min=0.1"],
    ]  # fmt: skip
    for words in options:
        assert sample(f"--output={tmp_path}", "--format=npz", *words) == 0
    assert len(os.listdir(tmp_path / "samples")) == len(options)
    capsys.readouterr()
    assert sample(f"--output={tmp_path}", "--format=npz", "--num_samples=2") == 0
    assert "with 3 samples" in capsys.readouterr().err
    many = [f"--labels={','.join(str((i + k) % 10) for i in range(12))}" for k in (0, 1)]
    many[1] = many[1][:-1] + "5"
    for words in (*many, "--labels=0,1,2,3,4,5,6,7,8,9,1"):
        assert sample("--config=digits_classes", f"--output={tmp_path / 'c'}", "--format=npz", words) == 0
    assert len(os.listdir(tmp_path / "c" / "samples")) == 3


def test_places_that_cannot_be_written_are_refused_before_the_work(tmp_path, ring, capsys, monkeypatch):
    monkeypatch.setattr(
        "sde_toolkit.samplers.sampler.PreparedSampler.sample", lambda *_, **__: pytest.fail("work began")
    )
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "samples" / "ddim-2-seed0.npz").mkdir(parents=True)
    for place in ("file", "file/under", "dangling", "a", "x" * 300, "/proc", "/dev/null"):
        assert sample(f"--output={tmp_path / place}") == 2
        assert "output must" in capsys.readouterr().err
    assert sample(f"--workdir={ring}", "--format=png") == 2
    assert "needs images" in capsys.readouterr().err
    assert sample(f"--output={tmp_path}", "--num_samples=1000000000000000") == 2
    assert "must fit this machine's memory" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a", "dangling", "file"]


def test_exports_are_refused_before_the_work(tmp_path, ring, capsys, monkeypatch):
    monkeypatch.setattr("sde_toolkit.runs.open_run", lambda *_: pytest.fail("work began"))
    checkpoint = next((ring / "checkpoints").glob("*.safetensors"))
    before = checkpoint.read_bytes()
    (tmp_path / "link").symlink_to(checkpoint)
    for place in (checkpoint, tmp_path / "link", "/dev/null", tmp_path, tmp_path / "link" / "a", "/proc/a"):
        assert cli.main(["export", f"--workdir={ring}", f"--output={place}"]) == 2
        assert "output must" in capsys.readouterr().err
    assert checkpoint.read_bytes() == before
    assert (tmp_path / "link").is_symlink()


def written(path, x, note):
    stream = io.BytesIO()
    np.savez_compressed(stream, x=x, note=np.array(note))
    path.write_bytes(stream.getvalue())
    return path


NOTE = {"nfe": 1.0, "seconds": 0.1, "seed": 0, "first_sample": 0, "settings": {}, "config": {}, "model": "a"}


@pytest.mark.parametrize(
    "note",
    ["", "null", "[]", "{}", "[" * 100_000, json.dumps({**NOTE, "nfe": None}),
     json.dumps({**NOTE, "seed": "0"}), json.dumps({**NOTE, "settings": []}), '{"seed": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_notes_with_missing_or_null_parts_are_refused(tmp_path, note):
    with pytest.raises(ValueError, match="is not a file of samples"):
        runs.load_samples(written(tmp_path / "a.npz", np.zeros((2, 2), np.float32), note))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(3, np.float32),
        np.zeros((0, 2)),
        np.full((2, 2), np.nan),
        np.zeros((2, 2), int),
        np.array("a"),
    ],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path, x):
    with pytest.raises(ValueError, match="is not a file of samples"):
        runs.load_samples(written(tmp_path / "a.npz", x, json.dumps(NOTE)))


def test_the_size_of_an_array_is_looked_at_before_it_is_read(tmp_path, monkeypatch):
    """An archive that unpacks to more than it may, and a header that claims more than there is."""
    monkeypatch.setattr("sde_toolkit.runs.samples.MAX_BYTES", 2**24)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 2)}
    )
    for content, words in ((header.getvalue() + bytes(80), "claims the shape"), (None, "claims 50,331,648")):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            if content is not None:
                archive.writestr("x.npy", content)
            else:
                with archive.open("x.npy", "w", force_zip64=True) as member:
                    for _ in range(48):
                        member.write(bytes(2**20))
        with pytest.raises(ValueError, match=words):
            runs.load_samples(tmp_path / "a.npz")


@pytest.mark.parametrize("put", [os.mkfifo, lambda p: p.mkdir(), lambda p: p.symlink_to("/dev/zero")])
def test_what_is_no_ordinary_file_is_refused(tmp_path, put):
    put(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="is not a file of samples"):
        runs.load_samples(tmp_path / "a.npz")


@settings(deadline=None, max_examples=100)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.integers(0, 3000))
def test_damaged_files_are_read_or_refused_with_a_sentence(tmp_path_factory, position, byte, cut):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    data = bytearray(written(path, np.ones((4, 3), np.float32), json.dumps(NOTE)).read_bytes())
    data[position % len(data)] = byte
    path.write_bytes(data[: max(len(data) - cut, 0)] if cut < len(data) // 2 else data)
    try:
        runs.load_samples(path)
    except ValueError as error:
        assert "is not a file of samples" in str(error)  # noqa: PT017


def test_the_names_of_compared_samples_say_the_options_too():
    from sde_toolkit.config import build_candidates
    from sde_toolkit.runs.comparison import samples_path

    names = set()
    for eta in (0, 1):
        overrides = {
            "sampling.sampler": "ddim",
            "sampling.eta": eta,
            "comparison.samplers": "ddim,ddim(eta=0.5)",
        }
        config = load_config("digits", {**overrides, "comparison.num_steps": "5"})
        candidates = build_candidates(config)
        names |= {samples_path(Path(), config, c, 0).name for c in candidates}
    assert names == {"ddim-5-seed0.npz", "ddim-5-eta1.0-seed0.npz", "ddim(eta=0.5)-5-seed0.npz"}
