import json
import socket

import pytest
import torch
from torch import nn

from sde_toolkit.interop import export_program, push_to_hub, write_card
from sde_toolkit.models import IndexedModel, NetworkModel, isotropic
from sde_toolkit.networks import MLP, UNet
from sde_toolkit.sdes import VESDE, VPSDE, Chain
from sde_toolkit.training import load_model


def small(**options):
    torch.manual_seed(0)
    return NetworkModel(MLP((2,), width=4, depth=1, **options), VPSDE(), "velocity", (2,))


PARTS = [pytest.param(part, marks=pytest.mark.slow) for part in ("network", "denoise", "noise", "velocity")]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["score", *PARTS])
def test_a_program_gives_the_numbers_of_the_model(tmp_path, part):
    model = small(num_classes=3)
    done = export_program(model, tmp_path / "model.pt2", part)
    assert done.inputs == ("x", "t", "condition")
    assert done.difference < 1e-6
    run = torch.export.load(done.path).module()
    x, t, labels = torch.randn(7, 2), torch.linspace(0.1, 0.9, 7), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    wanted = model.network(x, t, labels) if part == "network" else getattr(model, part)(x, t, labels)
    torch.testing.assert_close(run(x, t, labels), wanted)


@pytest.mark.slow
def test_onnx(tmp_path):
    import onnxruntime

    done = export_program(small(), tmp_path / "model.onnx", "score")
    assert done.difference < 1e-4
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    x, t = torch.randn(3, 2), torch.tensor([0.2, 0.5, 0.9])
    names = [given.name for given in session.get_inputs()]
    (found,) = session.run(None, dict(zip(names, (x.numpy(), t.numpy()), strict=True)))
    torch.testing.assert_close(torch.from_numpy(found), small().score(x, t), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".pt2", ".onnx"])
def test_u_nets_and_residuals(tmp_path, ending):
    unet = UNet((1, 8, 8), channels=(8, 16), num_classes=3)
    models = {
        "unet": NetworkModel(unet, VESDE(), "noise", (1, 8, 8)),
        "residual": NetworkModel(
            MLP((2,), width=4, depth=1), VPSDE(), "residual", (2,), moments=isotropic((2,), 0.5)
        ),
        "condition": small(condition_shape=(5,)),
        "chain": IndexedModel(MLP((2,), width=4, depth=1), Chain.cosine(9), "velocity", (2,)),
    }
    for name, model in models.items():
        assert export_program(model, tmp_path / f"{name}{ending}", "denoise").difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("fractional", [True, False])
def test_predictions_at_the_indices_of_a_chain_are_programs(tmp_path, fractional):
    chain = Chain.from_betas(torch.linspace(0.05, 0.5, 9, dtype=torch.float64))
    model = IndexedModel(MLP((2,), width=4, depth=1), chain, "noise", (2,), fractional)
    made = export_program(model, tmp_path / "chain.pt2", "score")
    assert made.difference < 1e-6
    program = torch.export.load(made.path).module()
    t = chain.times[1:].float()  # on every index, and with other numbers of rows
    for rows in (1, len(t)):
        x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            assert torch.allclose(program(x, t[-rows:]), model.score(x, t[-rows:]), rtol=1e-5, atol=1e-6)


class Asks(nn.Module):
    def forward(self, x, t):
        return x if float(x.sum()) > 0 else -x


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    model, path = small(), tmp_path / "model.pt2"
    for call, sentence in (
        (lambda: export_program(model, tmp_path / "model.txt"), "must end in .pt2 or .onnx"),
        (lambda: export_program(model, path, "colour"), "part must be"),
        (lambda: export_program(NetworkModel(Asks(), VPSDE(), "noise", (2,)), path), "torch.export knows"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_card_holds_the_model_its_figures_and_how_to_use_it(tmp_path):
    model, picture = small(num_classes=3), tmp_path / "samples.png"
    picture.write_bytes(b"png")
    place = write_card(
        model, tmp_path / "card", config={"seed": 1}, results={"bits/dim": 3.14159, "note": "a|b"},
        figures=[picture],
    )  # fmt: skip
    text = (place / "README.md").read_text()
    for part in (
        "library_name: sde-toolkit",
        "# card",
        "| bits/dim | 3.142 |",
        "a\\|b",
        "![samples]",
        "VPSDE",
    ):
        assert part in text
    assert json.loads((place / "config.json").read_text()) == {"seed": 1}
    again = load_model(place / "model.safetensors")
    x = torch.ones(2, 2)
    assert torch.equal(again.noise(x, torch.tensor(0.5)), model.noise(x, torch.tensor(0.5)))
    write_card(model, place)
    assert sorted(path.name for path in place.iterdir()) == ["README.md", "model.safetensors"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="with other files"):
        write_card(model, other)
    with pytest.raises(ValueError, match="figures must be files"):
        write_card(model, tmp_path / "new", figures=[tmp_path / "no.png"])
    with pytest.raises(TypeError, match="plain values"):
        write_card(model, tmp_path / "new", config={"a": object()})
    assert not (tmp_path / "new").exists()


def test_nothing_is_sent_but_a_model_with_its_card(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"without model\.safetensors and README\.md"):
        push_to_hub(tmp_path, "me/model")
    place = write_card(small(), tmp_path / "card")
    with pytest.raises(ValueError, match="OWNER/NAME"):
        push_to_hub(place, "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.raises(OSError, match="could not send"):
        push_to_hub(place, "me/model", token="hf_none", endpoint=endpoint)
