"""What may be put around any sampler on a fixed grid: correctors, restarts, an end without a draw.

References: Song et al. (2011.13456), algorithm 1; Xu et al., "Restart Sampling for Improving Generative
Processes" (2306.14878).
"""

from __future__ import annotations

from dataclasses import replace

from sde_toolkit.samplers.correctors import Corrector, Langevin
from sde_toolkit.samplers.restarts import Restart
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.utils import checked


@checked
def predictor_corrector(
    predictor: Sampler, corrector: Corrector | None = None, corrector_first: bool = False
) -> Sampler:
    """A predictor followed at every time by Langevin steps (2011.13456, algorithm 1).

    Args:
        predictor: any sampler on a fixed grid, for instance ``reverse_diffusion(500)``.
        corrector: ``Langevin()`` when None; ``AnnealedLangevin()`` suits data of few dimensions.
        corrector_first: correct where a step begins, from T on, as the paper's code does, in place of where
            it ends, as its algorithm does.

    Raises:
        ValueError: a predictor that chooses its own steps.
    """
    corrector = Langevin() if corrector is None else corrector
    name = f"{predictor.name}+langevin"
    return replace(predictor, name=name, corrector=corrector, corrector_first=corrector_first)


@checked
def without_last_draw(sampler: Sampler) -> Sampler:
    """A sampler whose last step leaves its draw out and so ends at its mean, x_mean in score_sde's code.

    It takes no evaluation.  ``denoise=True`` of a preset is another end, Tweedie's formula after the last
    step, for one more; both may be asked for.

    Args:
        sampler: with noise, on a fixed grid, for instance ``reverse_diffusion(500, denoise=False)``; with a
            corrector only if that comes first.

    Raises:
        ValueError: a sampler that does not end in a step with a draw.
    """
    return replace(sampler, last_draw=False)


@checked
def restarting(predictor: Sampler, *restarts: Restart) -> Sampler:
    """A deterministic sampler that goes through intervals of noise levels again (2306.14878).

    Args:
        predictor: deterministic, on a fixed grid, for instance ``edm(18)``.
        restarts: the intervals; give each a stream of its own.

    Raises:
        ValueError: no interval, two with one stream, or a predictor that does not fit.
    """
    if not restarts or len({r.stream for r in restarts}) != len(restarts):
        raise ValueError(f"give at least one restart, each with a stream of its own, got {restarts}")
    return replace(predictor, name=f"{predictor.name}+restart", restarts=restarts)
