"""A model with its card: a directory that a hub of models shows as it is.

    DIRECTORY/model.safetensors    weights, process, scaling: ``training.load_model`` reads it
    DIRECTORY/config.json          the configuration of the run, where there is one
    DIRECTORY/README.md            what the model is, its figures, how to use it
    DIRECTORY/*.png, *.svg         figures

Nothing is sent anywhere but by ``push_to_hub``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_toolkit.interop.libraries import other_library
from sde_toolkit.models import ModuleModel
from sde_toolkit.training import save_model
from sde_toolkit.utils import atomic_folder, check_output_directory, checked

MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
"""The files of such a directory."""

_HEAD = """---
library_name: sde-toolkit
tags:
- diffusion
- score-based
- {process}
---

# {title}

A score-based generative model made with sde-toolkit.

| | |
|---|---|
{rows}
"""

_USE = """
## Use

```python
from sde_toolkit import default, load_model, log_likelihood

model = load_model("model.safetensors"{network})
samples = default(model, 20).sample(model, 16).x
log_p = log_likelihood(model, samples).nats
```
"""


def _facts(model: ModuleModel) -> dict[str, object]:
    """What a reader wants to know of the model."""
    found: dict[str, object] = {
        "network": type(model.network).__name__,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "process": repr(model.sde),
        "predicts": model.network_predicts,
        "shape of a sample": " x ".join(map(str, model.event_shape)),
    }
    if model.num_classes:
        found["classes"] = model.num_classes
    if model.condition_shape is not None:
        found["shape of a condition"] = " x ".join(map(str, model.condition_shape))
    return found


def _text(
    model: ModuleModel, title: str, results: Mapping[str, object], figures: Sequence[str], ours: bool
) -> str:
    rows = [f"| {name} | {_cell(value)} |" for name, value in (*_facts(model).items(), *results.items())]
    head = _HEAD.format(process=type(model.sde).__name__.lower(), title=title, rows="\n".join(rows))
    pictures = "".join(f"\n![{Path(name).stem}]({name})\n" for name in figures)
    return head + pictures + _USE.format(network="" if ours else ", network=YOUR_NETWORK")


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def check_card_place(directory: Path | str, name: str = "directory") -> Path:
    """Refuse a directory that a card cannot be written to, or would replace other files in.

    Args:
        directory: where the card is to be.
        name: of the argument, for sentences.

    Raises:
        ValueError: see above.
    """
    place = check_output_directory(directory, name)
    if place.is_dir() and any(place.iterdir()) and not {MODEL, CARD} <= {p.name for p in place.iterdir()}:
        raise ValueError(f"{name} must be new or hold a model with its card, got {place} with other files")
    return place


@checked
def write_card(
    model: ModuleModel,
    directory: Path | str,
    *,
    title: str | None = None,
    config: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    figures: Sequence[Path | str] = (),
) -> Path:
    """Write a model, its configuration, its figures and a card that shows them into a directory.

    Args:
        model: a ``NetworkModel`` or ``IndexedModel``; of a training run, ``state.ema``.
        directory: made new; one that such a call has made before is replaced, whole or not at all.
        title: of the card; the directory's name when None.
        config: the run's configuration, as plain values.
        results: figures by name, such as {"bits/dim": "3.52 +- .02 (1000 images)"}.
        figures: pictures to copy and show.

    Returns:
        The directory.

    Raises:
        TypeError: a model of another class, or a configuration that JSON cannot say.
        ValueError: a directory with other things in it, or a figure that is not there.
        OSError: the disk is full; an earlier directory is untouched.
    """
    place = check_card_place(directory)
    pictures = [Path(figure).expanduser() for figure in figures]
    for picture in pictures:
        if not picture.is_file():
            raise ValueError(f"figures must be files, got {str(picture)!r}, where there is none")
    text = None
    if config is not None:
        try:
            text = json.dumps(dict(config), indent=1)
        except (TypeError, ValueError) as error:
            raise TypeError(f"config must hold plain values, got one that JSON cannot say: {error}") from None
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(place) as folder:
        save_model(model, folder / MODEL)
        if text is not None:
            (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        for picture in pictures:
            shutil.copyfile(picture, folder / picture.name)
        ours = type(model.network).__module__.startswith("sde_toolkit.")
        names = [picture.name for picture in pictures]
        card = _text(model, title or place.resolve().name, results or {}, names, ours)
        (folder / CARD).write_text(card, encoding="utf-8")
    return place


@checked
def push_to_hub(
    directory: Path | str,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Send a directory of ``write_card`` to the Hugging Face hub; nothing else here sends anything.

    Args:
        directory: with a model and its card.
        repo_id: "OWNER/NAME"; the repository is made if it is not there.
        private: whether a new repository is private.
        token: of the account; that of ``hf auth login`` when None.
        endpoint: address of another hub.

    Returns:
        The address of the commit.

    Raises:
        ValueError: not such a directory, or another form of name.
        ImportError: huggingface_hub is not installed.
        OSError: the hub was not reached, or refused.
    """
    folder = Path(directory).expanduser()
    missing = [name for name in (MODEL, CARD) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"directory must hold a model and its card, got {str(folder)!r} without {' and '.join(missing)}; "
            "write it by interop.write_card or sde-toolkit export"
        )
    owner, _, name = repo_id.partition("/")
    if not owner or not name or "/" in name:
        raise ValueError(f'repo_id must have the form "OWNER/NAME", got {repo_id!r}')
    hub = other_library("huggingface_hub", "sending a model to the hub", "images")
    try:
        api = hub.HfApi(endpoint=endpoint, token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder)))
    except Exception as error:  # those of the hub and of its transport are of many classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(
            f"could not send {folder} to {repo_id} on the hub: {reason}; log in by `hf auth login`"
        ) from error
