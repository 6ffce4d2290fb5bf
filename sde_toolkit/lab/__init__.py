"""The experiment: samplers x step counts x seeds, its records, tables, figures and the report page."""

from sde_toolkit.lab.drawing import (
    Recorder,
    Trajectory,
    extent_of,
    figures,
    forward_trajectory,
    has_ffmpeg,
    sample_picture,
    strip_figure,
    write_animation,
)
from sde_toolkit.lab.experiment import (
    Candidate,
    Metric,
    compare,
    plain_condition,
)
from sde_toolkit.lab.export import export_records
from sde_toolkit.lab.flow_error import (
    FlowEnds,
    FlowMetric,
)
from sde_toolkit.lab.gaussian_law import (
    GaussianLaw,
    GaussianMetric,
    gaussian_kl,
    gaussian_output,
)
from sde_toolkit.lab.page import (
    Card,
    Page,
    Picture,
    Sample,
    facets_of,
    refers_to,
    write_page,
)
from sde_toolkit.lab.papers import latex_table, write_papers
from sde_toolkit.lab.plan import (
    Cell,
    Experiment,
    Group,
    Outcome,
)
from sde_toolkit.lab.problems import (
    EXACT_PROBLEMS,
    NamedCondition,
    Problem,
    condition_rows,
    exact_problem,
)
from sde_toolkit.lab.records import (
    Record,
    Reference,
    load_records,
    paired_difference,
    pooled_records,
    save_records,
)
from sde_toolkit.lab.store import Store
from sde_toolkit.lab.table import (
    candidate_captions,
    format_table,
    plus_minus,
    problem_of,
    setting_of,
    short_name,
)

__all__ = [
    "EXACT_PROBLEMS",
    "Candidate",
    "Card",
    "Cell",
    "Experiment",
    "FlowEnds",
    "FlowMetric",
    "GaussianLaw",
    "GaussianMetric",
    "Group",
    "Metric",
    "NamedCondition",
    "Outcome",
    "Page",
    "Picture",
    "Problem",
    "Record",
    "Recorder",
    "Reference",
    "Sample",
    "Store",
    "Trajectory",
    "candidate_captions",
    "compare",
    "condition_rows",
    "exact_problem",
    "export_records",
    "extent_of",
    "facets_of",
    "figures",
    "format_table",
    "forward_trajectory",
    "gaussian_kl",
    "gaussian_output",
    "has_ffmpeg",
    "latex_table",
    "load_records",
    "paired_difference",
    "plain_condition",
    "plus_minus",
    "pooled_records",
    "problem_of",
    "refers_to",
    "sample_picture",
    "save_records",
    "setting_of",
    "short_name",
    "strip_figure",
    "write_animation",
    "write_page",
    "write_papers",
]
