"""Folders of images, read with Pillow: labels are the names of sub-folders, where there are any.

Files are read in the order of their paths.  All images come out with one number of channels and one size:
grey (1, H, W) or RGB (3, H, W), integers 0 ... 255.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from sde_toolkit.data.sources.raw import Raw
from sde_toolkit.utils import check_fields

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""Endings of the files that are taken for images."""

COLOURS = ("auto", "rgb", "grey")
"""Colours that images can be read in."""

ALPHA = ("raise", "flatten")
"""What can be done with transparent images."""

ON_ERROR = ("raise", "skip")
"""What can be done with images that cannot be read."""

_SHOWN = 5


@dataclass(frozen=True)
class ImageOptions:
    """How images are read.

    Args:
        colour: "rgb", "grey", or "auto": grey if all images are.
        alpha: "raise" refuses images that let the background through, "flatten" puts them on white.
        resize: length of the shorter side in pixels, by an antialiased bicubic filter; 0 keeps the size.
        crop: side of the square that is cut from the middle, after resizing; 0 keeps all.
        on_error: "raise" refuses a folder with files that cannot be read, "skip" leaves them out.

    Raises:
        ValueError: an unknown name or a negative size.
    """

    colour: str = "auto"
    alpha: str = "raise"
    resize: int = 0
    crop: int = 0
    on_error: str = "raise"

    def __post_init__(self) -> None:
        check_fields(self)
        for name, valid in (("colour", COLOURS), ("alpha", ALPHA), ("on_error", ON_ERROR)):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"data.{name} must be one of {', '.join(valid)}, got {getattr(self, name)!r}"
                )
        for name in ("resize", "crop"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"data.{name} must be a number of pixels, 0 for none, got {getattr(self, name)}"
                )


def read_folder(folder: Path, options: ImageOptions, labels: str = "") -> Raw:
    """All images under a folder, uint8 with shape (N, C, H, W).

    Args:
        folder: with images, or with one sub-folder of images for every class.
        options: how they are read.
        labels: "none" leaves the classes out.

    Raises:
        ValueError: no images, files that cannot be read (they are named), images of different sizes, or
            transparent ones where they are refused.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise ValueError(f"data source {folder} must hold images ({', '.join(SUFFIXES)}), got none")
    images, kept = _readable(paths, options)
    examples = _stacked(images, kept, options)
    owners = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in kept]
    classes = tuple(sorted(set(owners)))
    if labels == "none" or "" in classes or len(classes) < 2:
        return Raw(examples)
    return Raw(examples, np.array([classes.index(owner) for owner in owners]), classes)


def read_picture(path: Path) -> np.ndarray:
    """One picture as uint8 with shape (1, C, H, W); raises like ``read_folder``."""
    images, paths = _readable([path], ImageOptions())
    return _stacked(images, paths, ImageOptions())


def array_of_images(images: Sequence[Image.Image], options: ImageOptions, where: str) -> np.ndarray:
    """Images in memory as uint8 with shape (N, C, H, W); raises like ``read_folder``."""
    made = []
    for number, image in enumerate(images):
        try:
            made.append(_prepared(image, options))
        except _Transparent:
            raise ValueError(
                f"image {number} of {where} must be opaque; data.alpha=flatten puts it on white"
            ) from None
        except ValueError as error:
            raise ValueError(f"image {number} of {where} cannot be used: {error}") from None
    return _stacked(made, [Path(f"image {k}") for k in range(len(made))], options)


def _stacked(images: list[Image.Image], paths: list[Path], options: ImageOptions) -> np.ndarray:
    grey = options.colour == "grey" or (options.colour == "auto" and all(i.mode == "L" for i in images))
    arrays = [np.asarray(image.convert("L" if grey else "RGB")) for image in images]
    _check_sizes(arrays, paths)
    examples = np.stack(arrays)
    return examples[:, None] if grey else np.ascontiguousarray(examples.transpose(0, 3, 1, 2))


def _readable(paths: list[Path], options: ImageOptions) -> tuple[list[Image.Image], list[Path]]:
    images, kept, broken = [], [], []
    for path in paths:
        try:
            images.append(_read(path, options))
            kept.append(path)
        except _Transparent:
            raise ValueError(
                f"{path} must be opaque, got an image with an alpha channel; "
                "data.alpha=flatten puts it on white"
            ) from None
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError) as error:
            broken.append(f"{path} ({error})")
    if broken and (options.on_error == "raise" or not images):
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise ValueError(
            f"{len(broken)} of {len(paths)} images cannot be read: {'; '.join(broken[:_SHOWN])}{more}; "
            "remove them, or leave them out with data.on_error=skip"
        )
    if broken:
        warnings.warn(f"{len(broken)} of {len(paths)} images cannot be read and are left out: "
                      + "; ".join(broken[:_SHOWN]), stacklevel=4)  # fmt: skip
    return images, kept


class _Transparent(Exception):
    pass


def _read(path: Path, options: ImageOptions) -> Image.Image:
    """One image, grey ("L") or "RGB", resized and cropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as file:
                file.load()
                image: Image.Image = file.copy()
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from None
    return _prepared(image, options)


def _prepared(image: Image.Image, options: ImageOptions) -> Image.Image:
    image = _opaque(image, options)
    if options.resize:
        factor = options.resize / min(image.size)
        width, height = (max(1, round(side * factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    if options.crop:
        if min(image.size) < options.crop:
            raise ValueError(
                f"it has {image.size[0]}x{image.size[1]} pixels, fewer than data.crop={options.crop}"
            )
        left, top = ((side - options.crop) // 2 for side in image.size)
        image = image.crop((left, top, left + options.crop, top + options.crop))
    return image


def _opaque(image: Image.Image, options: ImageOptions) -> Image.Image:
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"it has the mode {image.mode} of more than 8 bits; save it with 8 bits per channel")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        full = image.convert("RGBA")
        if np.asarray(full.getchannel("A")).min() < 255:
            if options.alpha == "raise":
                raise _Transparent
            full = Image.alpha_composite(Image.new("RGBA", full.size, "white"), full)
        return full.convert("L" if image.mode in ("LA", "La") else "RGB")
    return image.convert("RGB")


def _check_sizes(arrays: list[np.ndarray], paths: list[Path]) -> None:
    first = arrays[0].shape
    for array, path in zip(arrays, paths, strict=True):
        if array.shape != first:
            sizes = [f"{a.shape[1]}x{a.shape[0]} ({p})" for a, p in ((arrays[0], paths[0]), (array, path))]
            raise ValueError(
                f"images must have one size, got {' and '.join(sizes)}; data.resize=PIXELS and "
                "data.crop=PIXELS make them equal"
            )
