"""Where data come from: files, folders, tables, named data sets, functions."""

from sde_toolkit.data.sources.folders import ALPHA, COLOURS, ON_ERROR, ImageOptions
from sde_toolkit.data.sources.given import TrainingData, batch_size_of, training_data
from sde_toolkit.data.sources.layout import LAYOUTS
from sde_toolkit.data.sources.opening import (
    SCALINGS,
    absolute_places,
    open_data,
    open_rows,
)
from sde_toolkit.data.sources.reading import absolute_source, is_function
from sde_toolkit.data.sources.splitting import is_share

__all__ = [
    "ALPHA",
    "COLOURS",
    "LAYOUTS",
    "ON_ERROR",
    "SCALINGS",
    "ImageOptions",
    "TrainingData",
    "absolute_places",
    "absolute_source",
    "batch_size_of",
    "is_function",
    "is_share",
    "open_data",
    "open_rows",
    "training_data",
]
