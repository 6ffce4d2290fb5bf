"""Features of the 8x8 digits, the space in which their Frechet distance is measured.

The extractor phi: (B, 1, 8, 8) -> (B, 48) is the penultimate layer (GELU, smooth) of a small convolutional
classifier of scikit-learn's digits, trained on their training split by cross-entropy with label smoothing.
Inputs in model scale are put into their grey-level bins first, so that dequantised data and samples are
compared alike: phi(x) depends on ``Scaling.to_levels(x)`` alone.

Training takes seconds and is a function of the recipe below: initial weights and batches are functions of a
fixed seed, and training runs on one thread, so that the number of threads does not matter.  The weights are
cached in memory and on disk (``cache_dir``), with a checksum.  A file that is damaged or belongs to another
recipe is replaced.

Not promised: other versions of torch and other kinds of processor may round differently and so give slightly
different features.  Distances can be compared only if they come from the same weights.

References: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium"
(1706.08500) for the Frechet distance on features of a classifier; Szegedy et al., "Rethinking the Inception
Architecture for Computer Vision" (1512.00567) for label smoothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sde_toolkit.data import Dataset, Scaling, batch_indices, digits
from sde_toolkit.utils import Stream, atomic_write, step_generator


@dataclass(frozen=True)
class Recipe:
    """All that decides the weights, besides the code of this module; ``version`` counts its changes."""

    version: int = 1
    num_features: int = 48
    num_steps: int = 300
    batch_size: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.1
    seed: int = 0

    def digest(self) -> str:
        """Return a name for these settings, 16 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


RECIPE = Recipe()
"""The recipe of the features that every Frechet distance of the toolkit is measured in."""


class FeatureExtractor:
    """A trained classifier of images, seen through its penultimate layer.

    ``body`` maps the centres of grey-level bins with shape (B, *event_shape) to features with shape (B, F),
    ``head`` maps features to logits with shape (B, K).
    """

    def __init__(
        self, body: nn.Module, head: nn.Module, scaling: Scaling, event_shape: tuple[int, ...]
    ) -> None:
        self.body = body.requires_grad_(False).eval()
        self.head = head.requires_grad_(False).eval()
        self.scaling = scaling
        self.event_shape = event_shape

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the features, float32 with shape (B, F), of ``x`` in model scale, shape (B, *event_shape).

        Raises ValueError for another shape and for values that are not finite.
        """
        if x.ndim < 1 or tuple(x.shape[1:]) != self.event_shape or len(x) == 0:
            wanted = ", ".join(map(str, ("B", *self.event_shape)))
            raise ValueError(f"x must have shape ({wanted}) with B >= 1, got {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError(
                f"x must be finite, got {int((~torch.isfinite(x)).sum())} NaN or infinite values"
            )
        levels = self.scaling.to_levels(x.detach().cpu())
        return torch.cat([self.body(_centre(part, self.scaling)) for part in levels.split(1024)])

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of the classes for ``x`` with shape (B, *event_shape): shape (B, K)."""
        return self.head(self(x))

    def predict(self, x: Tensor) -> Tensor:
        """Return the likeliest class for each of ``x`` with shape (B, *event_shape): int64, shape (B,)."""
        return self.logits(x).argmax(1)


@functools.lru_cache(maxsize=2)
def digit_features(recipe: Recipe = RECIPE) -> FeatureExtractor:
    """Return the extractor of the digits: from memory, from the cache folder, or trained (seconds)."""
    dataset, directory = digits(), cache_dir()
    network = classifier(recipe)
    path = None if directory is None else directory / f"digit-features-{recipe.digest()}.safetensors"
    if path is None or not _restore(path, network):
        train(network, dataset, recipe)
        if path is not None:
            _keep(path, network)
    return FeatureExtractor(network[:-1], network[-1], dataset.scaling, dataset.event_shape)


def cache_dir() -> Path | None:
    """Return the cache folder: $SDE_TOOLKIT_CACHE, $XDG_CACHE_HOME/sde-toolkit or ~/.cache/sde-toolkit.

    None if no variable is set and there is no home folder.  The folder need not exist.
    """
    if os.environ.get("SDE_TOOLKIT_CACHE"):
        return Path(os.environ["SDE_TOOLKIT_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "sde-toolkit"
    try:
        return Path.home() / ".cache" / "sde-toolkit"
    except RuntimeError:
        return None


def classifier(recipe: Recipe) -> nn.Sequential:
    """Return the untrained classifier, its weights keyed by the recipe's seed."""
    with torch.device("meta"):
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, recipe.num_features),
            nn.GELU(),
            nn.Linear(recipe.num_features, 10),
        )
    network.to_empty(device="cpu")
    generator = step_generator(recipe.seed, 0, Stream.WEIGHTS)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.zeros_(parameter)
        else:
            bound = parameter[0].numel() ** -0.5
            nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return network


def train(network: nn.Sequential, dataset: Dataset, recipe: Recipe) -> None:
    """Train the classifier in place on the training split of the labelled ``dataset``; deterministic.

    Raises ValueError if the training split has no labels.
    """
    x, labels = _centre(dataset.train[:], dataset.scaling), dataset.labels_train
    if labels is None:
        raise ValueError(f"dataset must have labels to train a classifier, got {dataset.name!r} without")
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=recipe.weight_decay)
    loss_function = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    network.train()
    with _one_thread(), torch.enable_grad():
        for step in range(recipe.num_steps):
            progress = (step + 1) / recipe.num_steps
            schedule = min(1.0, 10 * progress) * 0.5 * (1 + math.cos(math.pi * progress))
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * schedule
            index = batch_indices(len(x), recipe.batch_size, step, recipe.seed)
            loss = loss_function(network(x[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()


def _centre(levels: Tensor, scaling: Scaling) -> Tensor:
    """Return the centres of the bins of ``levels`` in model scale, float32."""
    return scaling.dequantize(levels, torch.full((), 0.5))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _weights_digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(f"{name} {state[name].dtype} {tuple(state[name].shape)}".encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _keep(path: Path, network: nn.Module) -> None:
    """Write the weights; where the folder cannot be written, the next process trains again."""
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(state, metadata={"sha256": _weights_digest(state)}))


def _restore(path: Path, network: nn.Module) -> bool:
    """Load the weights and return True; False if the file is missing, damaged or of another network."""
    try:
        with safe_open(path, framework="pt") as file:
            wanted = (file.metadata() or {}).get("sha256")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
    if _weights_digest(state) != wanted or _shapes(state) != _shapes(network.state_dict()):
        return False
    network.load_state_dict(state)
    return True


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}
