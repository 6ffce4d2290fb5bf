"""Rules about the source of both packages beside those of imports: what it calls, how long its parts are."""

import ast
import functools

import pytest
from source_files import Rule, Sources, calls, imports_of, parse, read_packages

WEIGHTS_ONLY = {"sde_toolkit.interop.score_sde.checkpoint"}
"""Modules that read pickles of others by ``torch.load(weights_only=True)``, which runs nothing."""
TALKATIVE = {"sde_toolkit.__main__", "sde_toolkit.cli"}


@functools.cache
def loads_more_than_weights(name: str, source: str) -> bool:
    """Whether a module calls ``torch.load`` otherwise than ``WEIGHTS_ONLY`` may."""
    found = (node for node in ast.walk(parse(source)) if isinstance(node, ast.Call))
    loads = [node for node in found if ast.unparse(node.func) == "torch.load"]
    safe = (
        any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in n.keywords) for n in loads
    )
    return bool(loads) and (name not in WEIGHTS_ONLY or not all(safe))


def nothing_unpickles(sources: Sources) -> list[str]:
    """But for torch's weights-only reader, where a format of others leaves no choice."""
    loaders = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    complaints = []
    for name, source in sources.items():
        complaints += [f"{name} imports {i.name}" for i in imports_of(name, sources) if i.root in loaders]
        unsafe = {"np.load(allow_pickle=True"} & calls(source)
        unsafe |= {"torch.load"} if loads_more_than_weights(name, source) else set()
        complaints += [f"{name} calls {called}" for called in sorted(unsafe)]
    return complaints


def library_code_is_silent_and_leaves_the_global_generators_alone(sources: Sources) -> list[str]:
    loud = {"torch.manual_seed", "torch.seed", "np.random.seed", "numpy.random.seed", "random.seed"}
    return [
        f"{name} calls {called}"
        for name, source in sources.items()
        for called in sorted(
            calls(source) & (loud | (set() if name.startswith(tuple(TALKATIVE)) else {"print"}))
        )
    ]


def lines_without_docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    text = function.body[0] if ast.get_docstring(function) else None
    described = 0 if text is None or text.end_lineno is None else text.end_lineno - text.lineno + 1
    return function.end_lineno - function.lineno + 1 - described


@functools.cache
def long_functions(source: str) -> list[str]:
    found = (n for n in ast.walk(parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node.name for node in found if lines_without_docstring(node) > 60]


def files_and_functions_are_short(sources: Sources) -> list[str]:
    complaints = []
    for name, source in sources.items():
        if source.count("\n") > 450:
            complaints.append(f"{name} is longer than 450 lines")
        complaints += [f"{name}.{function} is longer than 60 lines" for function in long_functions(source)]
    return complaints


def modules_open_with_a_docstring(sources: Sources) -> list[str]:
    return [
        f"{name} has no docstring" for name, text in sources.items() if not ast.get_docstring(parse(text))
    ]


RULES: list[Rule] = [
    nothing_unpickles,
    library_code_is_silent_and_leaves_the_global_generators_alone,
    files_and_functions_are_short,
    modules_open_with_a_docstring,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_packages_keep_the_rule(rule: Rule) -> None:
    sources = read_packages()
    assert len(sources) > 20
    assert rule(sources) == []


WRONG: list[tuple[Rule, str, str, str]] = [
    (nothing_unpickles, "sde_toolkit.new", "import pickle", "sde_toolkit.new imports pickle"),
    (
        nothing_unpickles,
        "sde_toolkit.new",
        "with np.load('f', allow_pickle=True) as x:\n    pass",
        "sde_toolkit.new calls np.load(allow_pickle=True",
    ),
    (nothing_unpickles, "sde_toolkit.new", "x = torch.load('f')", "sde_toolkit.new calls torch.load"),
    (
        nothing_unpickles,
        "sde_toolkit.new",
        "x = torch.load('f', weights_only=True)",
        "sde_toolkit.new calls torch.load",
    ),
    (
        nothing_unpickles,
        "sde_toolkit.interop.score_sde.checkpoint",
        "torch.load('f', weights_only=True)\ntorch.load('f')",
        "sde_toolkit.interop.score_sde.checkpoint calls torch.load",
    ),
    (
        library_code_is_silent_and_leaves_the_global_generators_alone,
        "solvers.new",
        "print(1)",
        "solvers.new calls print",
    ),
    (
        library_code_is_silent_and_leaves_the_global_generators_alone,
        "sde_toolkit.new",
        "torch.manual_seed(0)",
        "sde_toolkit.new calls torch.manual_seed",
    ),
    (files_and_functions_are_short, "solvers.new", "\n" * 451, "solvers.new is longer than 450 lines"),
    (
        files_and_functions_are_short,
        "solvers.new",
        "def f():\n" + "    x = 1\n" * 60,
        "solvers.new.f is longer than 60 lines",
    ),
    (modules_open_with_a_docstring, "solvers.new", "x = 1", "solvers.new has no docstring"),
]


@pytest.mark.parametrize(
    ("rule", "name", "text", "complaint"), WRONG, ids=lambda value: getattr(value, "__name__", "")
)
def test_the_rule_notices_a_source_that_breaks_it(rule: Rule, name: str, text: str, complaint: str) -> None:
    sources = read_packages()
    assert complaint not in rule(sources)
    assert complaint in rule({**sources, name: text})
