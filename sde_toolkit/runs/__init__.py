"""Runs: a working directory with a training run and everything that is made from it."""

from sde_toolkit.runs.classes import class_suffix, examples_of_class, need_classes
from sde_toolkit.runs.comparison import (
    Comparison,
    comparison_candidates,
    comparison_labels,
    headline,
    open_records,
    plan_comparison,
    read_records,
    records_path,
    run_comparison,
    samples_path,
    shard_path,
)
from sde_toolkit.runs.evaluation import Evaluation, evaluate_likelihood, evaluation_path, load_evaluation
from sde_toolkit.runs.page import write_experiment_page, write_report, write_stored_page
from sde_toolkit.runs.parts import Shard, ShardFinishedError, forget_parts, parts_path
from sde_toolkit.runs.pictures import (
    Cells,
    animation_frames,
    check_picture_folder,
    check_picture_shape,
    displayable,
    paper_cells,
    picture_of_samples,
    stored_samples,
    trajectory_pictures,
    write_pictures,
)
from sde_toolkit.runs.problems import open_problems, run_problem
from sde_toolkit.runs.samples import digest_of, draw_samples, load_samples, samples_stem, save_samples
from sde_toolkit.runs.store import Run, export_run, open_run, open_shipped, saved_step, shipped_path
from sde_toolkit.runs.training import Start, read_history, train_run

__all__ = [
    "Cells",
    "Comparison",
    "Evaluation",
    "Run",
    "Shard",
    "ShardFinishedError",
    "Start",
    "animation_frames",
    "check_picture_folder",
    "check_picture_shape",
    "class_suffix",
    "comparison_candidates",
    "comparison_labels",
    "digest_of",
    "displayable",
    "draw_samples",
    "evaluate_likelihood",
    "evaluation_path",
    "examples_of_class",
    "export_run",
    "forget_parts",
    "headline",
    "load_evaluation",
    "load_samples",
    "need_classes",
    "open_problems",
    "open_records",
    "open_run",
    "open_shipped",
    "paper_cells",
    "parts_path",
    "picture_of_samples",
    "plan_comparison",
    "read_history",
    "read_records",
    "records_path",
    "run_comparison",
    "run_problem",
    "samples_path",
    "samples_stem",
    "save_samples",
    "saved_step",
    "shard_path",
    "shipped_path",
    "stored_samples",
    "train_run",
    "trajectory_pictures",
    "write_experiment_page",
    "write_pictures",
    "write_report",
    "write_stored_page",
]
