"""Features of samples, for distances between features (``OnFeatures``): named, or anything of yours.

    "digits"                    the classifier of the 8x8 digits that ships with the toolkit
    "inception:WEIGHTS.pth"     the Inception network of FID and KID, with weights that you have downloaded
    "package.module:name"       a function, or a torch module, of yours
    "file.py:name"              the same from a file
    a function, a module        itself

What a dotted path or a file names is the function (or module) itself, or a class without arguments.  A
function maps samples with shape (B, *) to features with shape (B, F), or (B, *), which are flattened.  A
torch module is put into evaluation mode and called without gradients, on its own device and in its own type.

Inception's input: images with shape (B, 3, H, W) or (B, 1, H, W), which is repeated, in ``value_range``, by
default from -1 to 1.  They are clipped, rounded to 256 grey levels, as images in files are, and resized to
299 x 299 by the bilinear rule of TensorFlow 1 inside torch-fidelity, so that values agree with the published.

References: Heusel et al. (1706.08500) and Binkowski et al. (1801.01401) for distances on Inception's
features; Obukhov et al., "High-fidelity performance metrics for generative models in PyTorch" (2020).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.metrics.features import digit_features
from sde_toolkit.utils import checked, integer

Features = Callable[[Tensor], Tensor]

INCEPTION_WEIGHTS = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
"""Where the weights of Inception can be had; nothing is downloaded by the toolkit."""


class ModuleFeatures:
    """A torch module, or a function, as features: in batches, without gradients, flattened to (B, F)."""

    @checked
    def __init__(self, features: Callable[[Tensor], Tensor], batch_size: int = 256) -> None:
        self.features, self.batch_size = features, integer("batch_size", batch_size, 1)
        if isinstance(features, nn.Module):
            features.eval()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the features with shape (B, F) of ``x`` with shape (B, *).

        Raises ValueError for features that are no tensor with one row per sample.
        """
        return torch.cat([self._of_batch(part) for part in x.split(self.batch_size)])

    def _of_batch(self, x: Tensor) -> Tensor:
        if isinstance(self.features, nn.Module):
            weight = next(self.features.parameters(), torch.empty(0))
            x = x.to(weight.device, weight.dtype)
        found = self.features(x)
        if not isinstance(found, Tensor) or found.ndim < 1 or len(found) != len(x):
            came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"features must have shape ({len(x)}, F) for {len(x)} samples, got {came}")
        return found.flatten(1) if found.ndim > 1 else found[:, None]


class InceptionFeatures:
    """The 2048 features before Inception's last layer, for FID and KID; see the module.

    Needs torch-fidelity (``pip install 'sde-toolkit[fid]'``) and the file of weights, see
    ``INCEPTION_WEIGHTS``.  torch-fidelity reads it by ``torch.load``, which takes tensors alone since
    torch 2.6; with an older torch, which would run what the file says, it is refused.

    Args:
        weights: path of the file.
        value_range: the values of black and white.
        batch_size: images computed at once.

    Raises:
        ValueError: torch-fidelity is not installed, torch is too old, there is no such file or it holds
            something else, or a range that is empty.
    """

    @checked
    def __init__(
        self, weights: str | Path, value_range: tuple[float, float] = (-1.0, 1.0), batch_size: int = 64
    ) -> None:
        self.low, self.high = value_range
        if not self.low < self.high:
            raise ValueError(f"value_range must be (black, white) with black < white, got {value_range}")
        self.batch_size = integer("batch_size", batch_size, 1)
        if not Path(weights).is_file():
            raise ValueError(
                f"weights must be the file of Inception's weights, there is none at {weights}; download "
                f"{INCEPTION_WEIGHTS}"
            )
        self.network = _inception(Path(weights))

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Return the features with shape (B, 2048) of images with shape (B, 3 or 1, H, W)."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"x must hold images with shape (B, 3 or 1, H, W), got {tuple(x.shape)}")
        return torch.cat([self.network(part)[0] for part in self.levels(x).split(self.batch_size)])

    def levels(self, x: Tensor) -> Tensor:
        """Return the images as 256 grey levels of three channels, uint8."""
        unit = (x.double() - self.low) / (self.high - self.low)
        return (unit.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)


def _inception(weights: Path) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ValueError(
            "features 'inception' need the package torch-fidelity, which is not installed; run "
            "pip install 'sde-toolkit[fid]'"
        ) from None
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        raise ValueError(
            f"features 'inception' need torch 2.6 or later to read weights safely, got {torch.__version__}"
        )
    try:
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
        )
    except Exception as error:  # whatever torch.load raises for a file of another kind
        raise ValueError(f"weights {weights} cannot be read as Inception's: {str(error)[:300]}") from error


@checked
def feature_extractor(features: str | Callable[[Tensor], Tensor]) -> Features:
    """Return the features that a name, a path or a function stands for; see the module.

    A path is imported: what it names is run.

    Raises:
        ValueError: there is nothing of this name, or it is no function.
    """
    if not isinstance(features, str):
        return features if isinstance(features, InceptionFeatures) else ModuleFeatures(features)
    if features == "digits":
        return digit_features()
    head, _, rest = features.rpartition(":")
    if features.partition(":")[0] == "inception":
        if not rest or not head:
            raise ValueError(
                f"features 'inception' must name the file of weights, as in inception:weights.pth; download "
                f"{INCEPTION_WEIGHTS}"
            )
        return InceptionFeatures(features.partition(":")[2])
    if not head or not rest.isidentifier():
        raise ValueError(
            f"features must be digits, inception:WEIGHTS.pth, package.module:name, file.py:name or a "
            f"function, got {features!r}"
        )
    module = _load_file(head) if head.endswith(".py") else _load_module(head)
    found = getattr(module, rest, None)
    if isinstance(found, type):
        found = found()
    if not callable(found):
        raise ValueError(f"features {features!r} must name a function or a torch module, found {found!r:.80}")
    return ModuleFeatures(found)


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the module raises
        raise ValueError(f"features: module {name!r} cannot be imported: {error}") from error


def _load_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("sde_toolkit_features", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise ValueError(f"features: there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file raises
        raise ValueError(f"features: {path} cannot be run: {type(error).__name__}: {error}") from error
    return module
