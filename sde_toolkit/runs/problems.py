"""The problems of a comparison by name: a run, an exact problem, a workdir, a function of the user's.

    model                     the trained model of the run itself
    ring, mixture8, ...       ``sde_toolkit.lab.EXACT_PROBLEMS``, under the process of ``config.sde``
    digits, ...               a checkpoint of the package
    runs/a                    the newest checkpoint of a workdir
    diffusers:DIRECTORY       what diffusers saved there; with a vae, a model of latents, which may have
                              prompts
    file.py:f, package.m:f    what the function f returns: a ``Problem``, or (model, real examples)

Nothing that a file names is imported: a function counts only when it is given with the call
(``sde_toolkit.runs.trust``).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sde_toolkit.config import OWN_MODEL, REAL, Config, build_sde, config_names, resolve_device
from sde_toolkit.lab import EXACT_PROBLEMS, NamedCondition, Problem, exact_problem
from sde_toolkit.models import ScoreModel
from sde_toolkit.runs.classes import examples_of_class, need_classes
from sde_toolkit.runs.store import Run, fingerprint_of, open_run, open_shipped
from sde_toolkit.utils import named_object

_DIFFUSERS = "diffusers:"


def open_problems(config: Config, run: Run | None) -> list[Problem]:
    """The problems that ``config.comparison.problems`` names.

    Args:
        config: of the comparison.
        run: what "model" stands for.

    Raises:
        ValueError: a name that stands for nothing, or "model" without a run.
    """
    found = []
    for entry in config.comparison.problems:
        problem = _open(entry, config, run)
        found.append(replace(problem, folder="" if entry == OWN_MODEL else problem_folder(problem.name)))
    return found


def problem_folder(name: str) -> str:
    """The folder of a problem's samples, below that of all samples."""
    return re.sub(r"[^\w.-]+", "_", name)


def _open(entry: str, config: Config, run: Run | None) -> Problem:
    if entry == OWN_MODEL:
        if run is None:
            raise ValueError("problem 'model' needs a trained model; give --workdir=DIR or --config=NAME")
        return run_problem(run)
    if entry in EXACT_PROBLEMS:
        return exact_problem(entry, build_sde(config))
    if entry.startswith(_DIFFUSERS):
        return _from_diffusers(entry, config)
    if ":" in entry:
        return _from_function(entry)
    if Path(entry).expanduser().is_dir():
        return run_problem(open_run(entry, _use(config)), str(entry))
    if entry in config_names():
        return run_problem(open_shipped(entry, _use(config)), entry)
    raise ValueError(
        f"problem {entry!r} is unknown; it must be model, one of {', '.join(EXACT_PROBLEMS)}, a workdir, the "
        "name of a checkpoint of the package, diffusers:DIRECTORY, or a function as in mine.py:problem"
    )


def _from_diffusers(entry: str, config: Config) -> Problem:
    """A directory of diffusers; one with a vae is a model of its latents."""
    from sde_toolkit.interop import from_diffusers, open_latent

    folder = Path(entry.removeprefix(_DIFFUSERS)).expanduser()
    device, name = resolve_device(config), re.sub(r"[^\w.-]+", "-", entry)
    if not (folder / "vae").is_dir():
        model = from_diffusers(folder, device=device)
        return Problem(name, model, fingerprint=fingerprint_of(model.state_dict()), scaling=model.scaling)
    space = open_latent(folder, device=device)
    return Problem(
        name, space.model, fingerprint=fingerprint_of(space.model.state_dict()), scaling=space.model.scaling,
        of_prompt=None if space.text_encoder is None else lambda text: space.condition(text)[0],
    )  # fmt: skip


def prompt_conditions(problem: Problem, prompts: str) -> list[NamedCondition]:
    """The conditions that prompts stand for, one text after the other with "|" between them.

    Raises:
        ValueError: a model without texts, no text, or one that is given twice.
    """
    if problem.of_prompt is None:
        raise ValueError(
            f"prompts need a latent diffusion model with a text encoder, got problem {problem.name!r}; name "
            "one as diffusers:DIRECTORY, or leave the prompts out"
        )
    texts = [text.strip() for text in prompts.split("|")]
    if not all(texts) or len(set(texts)) < len(texts):
        raise ValueError(f"prompts must be different texts with | between them, got {prompts!r}")
    return [NamedCondition(text, problem.of_prompt(text)) for text in texts]


def _use(config: Config) -> dict[str, object]:
    """What another run is told of this configuration."""
    return {"comparison.real": config.comparison.real, "device": config.device}


def run_problem(run: Run, name: str | None = None) -> Problem:
    """A trained model and its data as a problem.

    Args:
        run: the trained model.
        name: for tables; that of the data if None.
    """
    dataset, part = run.dataset(), REAL[run.config.comparison.real]
    return Problem(
        run.config.data.name if name is None else name,
        run.model,
        part(dataset),
        fingerprint=run.fingerprint,
        scaling=dataset.scaling,
        real_of_class=lambda label: part(examples_of_class(dataset, label)),
    )


def real_examples(problem: Problem, condition: int | NamedCondition | None) -> Tensor | None:
    """Real examples with shape (M, *), those of one class or condition if it is given; None where there are
    none.

    Raises:
        ValueError: a class for a model without classes, or for data without labels; another condition for a
            model that does not take it; or real examples of another shape.
    """
    if condition is None:
        return problem.real
    if isinstance(condition, NamedCondition):
        return _real_of_condition(problem, condition)
    need_classes(problem.model)
    if problem.real_of_class is None:
        raise ValueError(f"problem {problem.name!r} must know its data by class for a label, got {condition}")
    return problem.real_of_class(condition)


def _real_of_condition(problem: Problem, condition: NamedCondition) -> Tensor | None:
    problem.model.conditions(condition.rows(1), 1)
    if problem.real_of_condition is None:
        return None
    try:
        real = problem.real_of_condition(condition.value)
    except Exception as error:  # whatever the function raises
        raise ValueError(
            f"problem {problem.name!r}: real_of_condition failed for {condition}: {type(error).__name__}: "
            f"{error}"
        ) from error
    wanted = problem.model.event_shape
    if not isinstance(real, Tensor) or tuple(real.shape[1:]) != wanted or real.ndim < 1:
        got = f"shape {tuple(real.shape)}" if isinstance(real, Tensor) else type(real).__name__
        raise ValueError(
            f"problem {problem.name!r}: real_of_condition must return a tensor with shape (M, "
            f"{', '.join(map(str, wanted))}), got {got}"
        )
    return real


def _from_function(entry: str) -> Problem:
    found = named_object(entry, "problem")
    try:
        made = found() if callable(found) and not isinstance(found, ScoreModel) else found
    except Exception as error:  # whatever the function raises
        raise ValueError(f"problem {entry!r} failed: {type(error).__name__}: {error}") from error
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], ScoreModel):
        return Problem(entry.rpartition("/")[2], made[0], made[1])
    if not isinstance(made, Problem):
        raise ValueError(
            f"problem {entry!r} must return a Problem or (model, real examples), got {type(made).__name__}"
        )
    return made
