"""Samplers by particles that are weighted and resampled, exact as the particles grow."""

from sde_toolkit.guidance.inverse.particles.groups import resampled
from sde_toolkit.guidance.inverse.particles.sampler import Particles, TwistedSMC

__all__ = ["Particles", "TwistedSMC", "resampled"]
