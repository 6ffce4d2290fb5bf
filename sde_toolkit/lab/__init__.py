"""The experiment: samplers x step counts x seeds, its records, tables, figures and the report page."""

from sde_toolkit.lab import figures
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
from sde_toolkit.lab.page import (
    Card,
    Page,
    Picture,
    write_page,
)
from sde_toolkit.lab.plan import (
    Cell,
    Experiment,
    Group,
    Outcome,
)
from sde_toolkit.lab.problems import (
    EXACT_PROBLEMS,
    Problem,
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
    format_table,
    plus_minus,
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
    "Group",
    "Metric",
    "Outcome",
    "Page",
    "Picture",
    "Problem",
    "Record",
    "Reference",
    "Store",
    "compare",
    "exact_problem",
    "export_records",
    "figures",
    "format_table",
    "load_records",
    "paired_difference",
    "plain_condition",
    "plus_minus",
    "pooled_records",
    "save_records",
    "setting_of",
    "short_name",
    "write_page",
]
