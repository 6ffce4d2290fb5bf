"""Drawing: figures by matplotlib, small pictures of samples, samples on their way, and axes around zero."""

from sde_toolkit.lab.drawing import figures
from sde_toolkit.lab.drawing.animation import has_ffmpeg, strip_figure, write_animation
from sde_toolkit.lab.drawing.pictures import extent_of, png_size, sample_picture
from sde_toolkit.lab.drawing.symlog import linear_threshold
from sde_toolkit.lab.drawing.trajectories import Recorder, Trajectory, forward_trajectory

__all__ = [
    "Recorder",
    "Trajectory",
    "extent_of",
    "figures",
    "forward_trajectory",
    "has_ffmpeg",
    "linear_threshold",
    "png_size",
    "sample_picture",
    "strip_figure",
    "write_animation",
]
