"""The catalogue of samplers: found by reading the source, never listed by hand.

A preset is a public function that is annotated to return a ``Sampler`` and can be called with one of

    (num_steps)             a sampler on a fixed grid
    (model, num_steps)      the same, made for one model
    ()                      a sampler with the tolerances rtol and atol, which chooses its own steps

and otherwise with keyword arguments that have defaults.  Every such function of a module in
``samplers/presets/`` or ``samplers/gaussian/`` is in ``PRESETS`` under its own name.  Its options are its
other parameters, with their defaults and types; their meanings are read from the part "Args:" of its
docstring; its orders and its number of network evaluations are those of the ``Sampler`` that it makes.

A function elsewhere is a sampler too, under its dotted path: ``mypackage.module.function`` or
``mypackage.module:function``.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Literal

from sde_toolkit.samplers import gaussian, presets
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.utils import named_object

Kind = Literal["fixed", "model", "adaptive"]

COMMON = {
    "num_steps": "steps of the time grid; the Gaussian-residual sampler counts network evaluations instead",
    "t_min": "end of the reverse run",
    "grid": "times of the steps",
    "denoise": "whether the last state is replaced by its clean prediction, one more network evaluation",
    "rtol": "relative tolerance of adaptive steps",
    "atol": "absolute tolerance of adaptive steps",
    "max_steps": "attempted adaptive steps after which a sample has failed",
    "lower_final": "whether the order falls towards the last step, as a last noise level of 0 needs",
}
"""Meanings of the parameters that many presets share; a preset's docstring need not repeat them."""

_NOT_OWN = ("model", "num_steps", "t_min", "grid", "denoise", "rtol", "atol")


@dataclass(frozen=True)
class Option:
    """A parameter of a preset beyond those that all samplers share.

    Attributes:
        name: of the parameter.
        default: its default.
        type: its annotation, ``Any`` where it has none.
        meaning: what the docstring says of it; empty if nothing.
    """

    name: str
    default: Any
    type: Any = Any
    meaning: str = ""


@dataclass(frozen=True)
class Preset:
    """A function that makes a sampler, and what can be read from it.

    Attributes:
        name: under which it is found.
        function: the function.
        kind: how it is called, see the module's text.
        parameters: names of all its parameters.
        options: its own ones, beyond num_steps, t_min, grid, denoise and tolerances.
        summary: the first sentence of its docstring.
    """

    name: str
    function: Callable[..., Sampler]
    kind: Kind
    parameters: tuple[str, ...] = field(repr=False)
    options: Mapping[str, Option] = field(repr=False)
    summary: str = field(default="", repr=False)

    def make(self, num_steps: int | None = None, model: Any = None, **options: Any) -> Sampler:
        """The sampler with these options, those among the preset's parameters.

        Args:
            num_steps: of the grid; without effect on an adaptive preset.
            model: for a preset that is made for one.
            options: of the preset.

        Raises:
            ValueError: no model for a preset that is made for one, an option out of range.
            TypeError: the function returns something else than a ``Sampler``.
        """
        if self.kind == "model" and model is None:
            raise ValueError(f"sampler {self.name!r} is made for a model: build it with model=")
        first = {"fixed": (num_steps,), "model": (model, num_steps), "adaptive": ()}[self.kind]
        made = self.function(*first, **options)
        if not isinstance(made, Sampler):
            raise TypeError(f"sampler {self.name!r} must return a Sampler, got {type(made).__name__}")
        return made


def describe(name: str, function: Callable[..., Sampler]) -> Preset:
    """What the signature and the docstring of a function say.

    Raises:
        ValueError: the function cannot be called in one of the ways of the module's text.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(f"sampler {name!r} has no signature that can be read: {error}") from None
    required = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    names = tuple(parameters)
    if names[:1] == ("num_steps",) and set(required) <= {"num_steps"}:
        kind: Kind = "fixed"
    elif names[:2] == ("model", "num_steps") and set(required) <= {"model", "num_steps"}:
        kind = "model"
    elif {"rtol", "atol"} <= set(names) and not required:
        kind = "adaptive"
    else:
        raise ValueError(
            f"sampler {name!r} must take num_steps as its first parameter (or rtol and atol, for adaptive "
            f"steps) and have defaults for all others, got ({', '.join(map(str, parameters.values()))})"
        )
    hints, meanings = _hints(function), _meanings(inspect.getdoc(function) or "")
    options = {
        p.name: Option(
            p.name, p.default, hints.get(p.name, Any), meanings.get(p.name) or COMMON.get(p.name, "")
        )
        for p in parameters.values()
        if p.name not in _NOT_OWN and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    return Preset(name, function, kind, names, options, _summary(inspect.getdoc(function) or ""))


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # a name that only type checkers see
        return {}


def _summary(text: str) -> str:
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<!eq)(?<=[a-z0-9)])[.;]\s", paragraph + " ")[0].rstrip(" .")


def _meanings(text: str) -> dict[str, str]:
    """Parameter -> meaning, from the lines "name: meaning" and "name, name: meaning" under "Args:"."""
    found: dict[str, str] = {}
    current: list[str] = []
    section = re.search(r"^Args:\n((?:[ \t]+\S.*\n|\n)+)", text + "\n", re.MULTILINE)
    for line in section[1].splitlines() if section else ():
        entry = re.match(r" {4}([\w*]+(?:, \w+)*): (.*)", line)
        if entry:
            current = entry[1].split(", ")
            found.update(dict.fromkeys(current, entry[2].strip()))
        elif line.strip():
            found.update({name: f"{found[name]} {line.strip()}" for name in current})
    return found


class Catalogue(Mapping[str, Preset]):
    """All presets by name, those of the modules that are there at the moment of asking."""

    def __getitem__(self, name: str) -> Preset:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"Catalogue({', '.join(self)})"

    def _all(self) -> dict[str, Preset]:
        return {preset.name: preset for module in _modules() for preset in _presets_of(module)}


PRESETS = Catalogue()
"""The presets of the package."""


def _modules() -> list[ModuleType]:
    return [
        importlib.import_module(f"{home.__name__}.{found.name}")
        for home in (gaussian, presets)
        for found in pkgutil.iter_modules(home.__path__)
    ]


@functools.cache
def _presets_of(module: ModuleType) -> tuple[Preset, ...]:
    found = []
    for name, function in vars(module).items():
        own = inspect.isfunction(function) and function.__module__ == module.__name__
        if name.startswith("_") or not own or not _returns_sampler(function):
            continue
        try:
            found.append(describe(name, function))
        except ValueError:  # a function that needs more to make a sampler, as a wrapper does
            continue
    return tuple(found)


def _returns_sampler(function: Callable[..., Any]) -> bool:
    annotation = inspect.signature(function).return_annotation
    return annotation is Sampler or (isinstance(annotation, str) and annotation.split(".")[-1] == "Sampler")


def find_preset(name: str) -> Preset:
    """The preset of this name, or the function at this dotted path.

    Raises:
        ValueError: there is none; the sentence names the nearest preset, or what is wrong with the path.
    """
    if "." in name.strip(".") or ":" in name:
        return _find_function(name)
    if name not in PRESETS:
        hint = suggestion(name)
        meant = f"did you mean {hint!r}? " if hint else ""
        raise ValueError(
            f"sampler {name!r} is unknown; {meant}valid: {', '.join(sorted(PRESETS))}; "
            "or the dotted path of a function of yours, as in mypackage.mine"
        )
    return PRESETS[name]


def _find_function(path: str) -> Preset:
    function = named_object(path, "sampler")
    if not callable(function):
        raise ValueError(
            f"sampler {path!r} must be a function that returns a Sampler, got a {type(function).__name__}"
        )
    return describe(path if ".py:" in path else path.replace(":", "."), function)


OTHER_NAMES = {
    "dpm_solver": "dpm dpm2 kdpm2 dpmfast dpmadaptive dpmsolverfast",
    "dpm_solver_pp": "dpmpp dpmpp2m dpmpp3m dpmsolverpp dpmsolverpp2m dpmsolverpp3m dpmsolvermultistep "
    "dpmmultistep edmdpmsolvermultistep",
    "dpm_solver_pp_2s": "dpmpp2s dpmpp2sa dpmpp2sancestral dpmsolverpp2s dpmsolversinglestep",
    "sde_dpm_solver_pp": "dpmppsde dpmpp2msde dpmpp3msde dpmsolversde dpmsolverppsde sdedpmpp",
    "deis": "deismultistep tab tabdeis",
    "unipc": "unipcmultistep unipcbh1 unipcbh2",
    "lms": "klms lmsdiscrete linearmultistep",
    "pndm": "plms fpndm spndm",
    "ipndm": "ipndmv",
    "edm": "heundiscrete kheun karrasve edmheun heunpp",
    "heun": "heun2",
    "ancestral": "eulera eulerancestral eulerancestraldiscrete keulera keulerancestral smld",
    "ddim": "keuler eulerdiscrete edmeuler ddiminverse",
    "euler_maruyama": "em eulermaruyama reversesde",
    "reverse_diffusion": "rd pc predictorcorrector",
    "dopri5": "dopri rk45 ode probabilityflow pfode neuralode",
    "sa_solver": "sa",
    "er_sde": "ersdesolver",
    "exponential_adams": "exponentialab eab res resmultistep",
    "gaussian_residual": "gaussian residual",
}
"""Preset -> names of its family in diffusers, k-diffusion and papers, in small letters and digits alone."""


def suggestion(name: str) -> str | None:
    """The preset that a wrong name most likely means; None where nothing is near."""
    plain = _plain(name)
    known = {other: preset for preset, others in OTHER_NAMES.items() for other in others.split()}
    known |= {_plain(preset): preset for preset in PRESETS}
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
    return known[close[0]] if close else None


def _plain(name: str) -> str:
    """Small letters and digits, "pp" for "++", without what diffusers' class names end in."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))
    return plain.removesuffix("scheduler") or plain
