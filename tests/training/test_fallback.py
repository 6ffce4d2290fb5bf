"""Reading the newest checkpoint whatever lies beside it, and while a run replaces it."""

import json
import os
import threading
import warnings

import pytest
import safetensors.torch
import torch

from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.checkpoint import (
    export_checkpoint,
    latest_checkpoint,
    read_checkpoint,
    refuse_checkpoint,
    save_checkpoint,
)
from sde_toolkit.training.state import TrainState
from sde_toolkit.training.tensor_file import digest


@pytest.fixture
def state():
    return TrainState(NetworkModel(MLP((2,), 4, 1), VPSDE(), "noise", (2,)))


def dangling(path):
    path.symlink_to(path.parent / "nowhere")


def loop(path):
    path.symlink_to(path)


def device(path):
    path.symlink_to("/dev/zero")


def nested(path):
    header = {"sde_toolkit": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"}
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, header)


def binary(path):
    path.write_bytes(bytes(range(256)) * 100)


def large_header(path):
    path.write_bytes((2**62).to_bytes(8, "little") + b"{")


@pytest.mark.parametrize(
    "put", [dangling, loop, device, nested, binary, large_header, os.mkfifo, lambda p: p.mkdir()]
)
def test_what_is_no_checkpoint_is_skipped_with_a_warning(tmp_path, state, put):
    save_checkpoint(state, tmp_path)
    late = tmp_path / "checkpoints" / "step-99999999.safetensors"
    put(late)
    with pytest.warns(RuntimeWarning, match="going back to the checkpoint before step-99999999"):
        assert latest_checkpoint(tmp_path).step == 0
    state.step = 3
    early = tmp_path / "checkpoints" / "step-00000000.safetensors"
    early.unlink()
    put(early)
    save_checkpoint(state, tmp_path, keep=1)  # what is not ours stays where it is
    assert os.path.lexists(late)
    for path in (tmp_path / "checkpoints").iterdir():
        if path.name != "step-00000003.safetensors":
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    put(late)
    (tmp_path / "checkpoints" / "step-00000003.safetensors").unlink()
    with (
        pytest.warns(RuntimeWarning, match="going back"),
        pytest.raises(ValueError, match="can be read; remove them"),
    ):
        latest_checkpoint(tmp_path)


def test_a_reader_that_races_a_live_run_always_gets_a_checkpoint(tmp_path, state):
    save_checkpoint(state, tmp_path, keep=1)
    done = threading.Event()

    def train():
        while not done.is_set():
            state.step += 1
            save_checkpoint(state, tmp_path, keep=1)

    thread = threading.Thread(target=train)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            steps = [latest_checkpoint(tmp_path).step for _ in range(200)]
    finally:
        done.set()
        thread.join()
    assert steps == sorted(steps)
    assert len(set(steps)) > 3


def test_a_flipped_bit_anywhere_in_the_tensors_is_found(tmp_path, state):
    path = save_checkpoint(state, tmp_path)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for place in range(start, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="whose digest differs"):
            read_checkpoint(path)
    path.write_bytes(whole)
    assert read_checkpoint(path).step == 0


def test_the_digest_is_of_names_types_shapes_and_bytes():
    a = {"w": torch.zeros(2, 3), "v": torch.ones((), dtype=torch.bfloat16)}
    assert digest(a) == digest(dict(reversed(a.items())))
    others = [{**a, "w": torch.zeros(3, 2)}, {**a, "w": torch.zeros(2, 3, dtype=torch.int32)},
              {"u": a["w"], "v": a["v"]}, {**a, "w": a["w"] - 0.0}, {**a, "w": -a["w"]}]  # fmt: skip
    assert [digest(other) == digest(a) for other in others] == [False, False, False, True, False]


@pytest.mark.parametrize("document", ["\x00", "[" * 5000, '{"a": 1e999}', '{"step": ' + "9" * 5000 + "}"])
def test_foreign_documents_are_refused(tmp_path, document):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, {"sde_toolkit": document})
    with pytest.raises(ValueError, match="of another kind"):
        read_checkpoint(path)


def test_a_deep_configuration_is_refused(tmp_path, state):
    path = save_checkpoint(state, tmp_path)
    with safetensors.safe_open(path, "pt") as file:
        document = json.loads(file.metadata()["sde_toolkit"])
    for _ in range(100):
        document["config"] = {"a": document["config"]}
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"sde_toolkit": json.dumps(document)})
    with pytest.raises(ValueError, match="of another kind"):
        read_checkpoint(path)


def test_nothing_is_exported_onto_a_training_checkpoint(tmp_path, state):
    path = save_checkpoint(state, tmp_path)
    checkpoint, before = read_checkpoint(path), path.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(path)
    for place, words in (
        (path, "must not be a training checkpoint"),
        (path.with_name("step-00000009.safetensors"), "must not be a training checkpoint"),
        (tmp_path / "link.safetensors", "a symbolic link"),
        ("/dev/null", "a device"),
        (tmp_path, "a directory"),
    ):
        with pytest.raises(ValueError, match=words):
            export_checkpoint(checkpoint, place)
    assert path.read_bytes() == before
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(before)
    with pytest.raises(ValueError, match="must not be a training checkpoint"):
        refuse_checkpoint(copied)
    export_checkpoint(checkpoint, tmp_path / "new.safetensors")
    export_checkpoint(checkpoint, tmp_path / "new.safetensors")
