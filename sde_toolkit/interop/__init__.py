"""Models of other libraries, in and out: what a directory, a pipeline or a function of theirs is here.

Nothing that a directory holds is unpickled or run, and nothing is downloaded.
"""

from sde_toolkit.interop.denoisers import ForeignModel, State, Time, TimeName
from sde_toolkit.interop.doors import EDM_RANGE, from_denoiser, from_edm, from_epsilon

__all__ = [
    "EDM_RANGE",
    "ForeignModel",
    "State",
    "Time",
    "TimeName",
    "from_denoiser",
    "from_edm",
    "from_epsilon",
]
