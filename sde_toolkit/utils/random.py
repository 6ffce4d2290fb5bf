"""Random draws as functions of what they are for.

    normals      keyed by (seed, stream, sample, draw)    ``solvers.Normals``
    generators   keyed by (seed, stream, step)            ``step_generator``
    orders       keyed by (seed, stream, step)            ``permutation``

``Stream`` is the one registry of stream numbers in the project: two purposes with one number would share
their random bits.  ``step_generator`` lets numpy's SeedSequence mix its key into the seed of a torch
generator.  ``permutation`` orders N examples by N 64-bit words of numpy's Philox generator.

Not promised: torch's CPU generator keeps 32 bits of its seed.  Among n steps, some two share their draws with
probability about n^2 / 2^33.  That is a coincidence over a long run, not a correlation within a step.

Reference: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011) for Philox.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.utils.checks import integer
from solvers.brownian import AREA, STEPS
from solvers.exponential import SECOND_HALF
from solvers.tree import TREE

_GENERATORS = 1 << 32
"""Added to the numbers of the streams of ``step_generator``; numpy is given the number without it."""


class Stream(enum.IntEnum):
    """What a draw is for: each purpose in the project has a number of its own, which fixes its bits.

    The first part are streams of normals keyed by (seed, sample, draw), see ``solvers.Normals``; the second
    part are streams of generators keyed by (seed, step), see ``step_generator``.
    """

    STEPS = STEPS  # increments of a solver's steps
    PRIOR = 1  # starts of reverse runs
    CORRECTOR = 2  # Langevin steps
    PROBES = 3  # of divergences
    TREE = TREE  # nodes of Brownian trees
    BINS = 5  # places inside the bins of grey levels, for likelihoods
    RESTART = 6  # noise added by restarts
    AREA = AREA  # space-time Levy areas of a solver's steps
    RECONSTRUCTION = 8  # the noisy state at the data end of a likelihood
    NORMALIZER = 9  # of the density at T, for the error budget
    SECOND_HALF = SECOND_HALF  # second halves of exponential Runge-Kutta steps
    DATA = 0x64617461  # draws of exact data
    COMPONENTS = 0x64617462  # which component of a mixture
    BOUND_PLACES = 0x626F6E64  # times or indices of a variational bound
    BOUND_NOISE = 0x626F6E65  # its noisy states
    BOUND_RECONSTRUCTION = 0x626F6E66  # its first noisy state
    FORWARD = 0x666F7277  # paths of the forward process
    MISSING = 0x6D697373  # entries of a row that were not observed
    MODEL_STATES = 0x70726F62  # states whose predictions identify a model
    OBSERVATION = 0x6F627376  # noise of observations; random projections
    REPLACEMENT = 0x7265706C  # what an observation puts in place of a state
    PARTICLES = 0x70617274  # steps of particles
    ANCESTORS = 0x616E6365  # which particles go on
    GIBBS = 0x67696262  # Gaussian draws of split Gibbs chains, and the seeds of the others

    PERMUTATION = _GENERATORS  # orders of the examples
    DEQUANTIZATION = _GENERATORS + 1  # of grey levels in batches and examples
    TIME = _GENERATORS + 2  # times of a training step
    NOISE = _GENERATORS + 3  # noises of a training step
    DROPOUT = _GENERATORS + 4  # dropout masks
    EXAMPLES = _GENERATORS + 5  # draws of toy data; grey levels of whole data sets
    SPLIT = _GENERATORS + 6  # training and test parts; groups of the jackknife
    WEIGHTS = _GENERATORS + 7  # initial weights
    PROJECTIONS = _GENERATORS + 8  # directions of the sliced Wasserstein distance
    LABELS = _GENERATORS + 9  # examples that are trained without their label
    RESAMPLING = _GENERATORS + 10  # bootstrap of classification results
    FLIPS = _GENERATORS + 11  # which images of a batch are mirrored
    AUGMENTATION = _GENERATORS + 12  # what a data set of the user's own draws when a batch is read
    SKETCH = _GENERATORS + 13  # directions that find the widest axes of data
    HELD_OUT = _GENERATORS + 14  # times and noises of losses on held-out examples
    HELD_OUT_LEVELS = _GENERATORS + 15  # those of such losses at given noise levels
    CLASSIFIER = _GENERATORS + 17  # times and noises of a classifier's training step
    RADII = _GENERATORS + 16  # of angles as points of the plane


def seed_sequence(seed: int, stream: int, step: int) -> np.random.SeedSequence:
    """Return numpy's well-mixed seed of (seed, stream, step), integers >= 0."""
    key = (integer("stream", stream, 0) % _GENERATORS, integer("step", step, 0))
    return np.random.SeedSequence(integer("seed", seed, 0), spawn_key=key)


def step_generator(seed: int, step: int, stream: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator whose state is a well-mixed function of (seed, step, stream) alone."""
    low, high = seed_sequence(seed, stream, step).generate_state(2, np.uint32).tolist()
    return torch.Generator(device).manual_seed(high << 32 | low)


def permutation(num_data: int, seed: int, step: int, stream: int) -> Tensor:
    """Return a uniform random order of 0, ..., num_data - 1 that is a function of its arguments."""
    # Raw words, not Generator.permutation: their stream is fixed for good; ties have probability n^2 / 2^65.
    words = np.random.Philox(seed_sequence(seed, stream, step)).random_raw(num_data)
    return torch.from_numpy(np.argsort(words, kind="stable"))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from ``seed``, and put the global generator back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(step_generator(seed, 0, Stream.WEIGHTS).initial_seed())
        yield
