"""Runs: a working directory with a training run and everything that is made from it."""

from sde_toolkit.runs.classes import class_suffix, examples_of_class, need_classes
from sde_toolkit.runs.comparison import (
    Comparison,
    comparison_candidates,
    headline,
    records_path,
    run_comparison,
    samples_path,
)
from sde_toolkit.runs.evaluation import Evaluation, evaluate_likelihood, evaluation_path, load_evaluation
from sde_toolkit.runs.page import write_report
from sde_toolkit.runs.samples import displayable, load_samples, picture_of_samples, save_samples
from sde_toolkit.runs.store import Run, export_run, open_run, open_shipped, saved_step, shipped_path
from sde_toolkit.runs.training import Start, read_history, train_run

__all__ = [
    "Comparison",
    "Evaluation",
    "Run",
    "Start",
    "class_suffix",
    "comparison_candidates",
    "displayable",
    "evaluate_likelihood",
    "evaluation_path",
    "examples_of_class",
    "export_run",
    "headline",
    "load_evaluation",
    "load_samples",
    "need_classes",
    "open_run",
    "open_shipped",
    "picture_of_samples",
    "read_history",
    "records_path",
    "run_comparison",
    "samples_path",
    "save_samples",
    "saved_step",
    "shipped_path",
    "train_run",
    "write_report",
]
