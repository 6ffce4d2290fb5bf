"""The experiment: samplers x step counts x seeds, its records, tables, figures and the report page."""

from sde_toolkit.lab import figures
from sde_toolkit.lab.experiment import (
    Candidate,
    Metric,
    Record,
    Reference,
    compare,
    load_records,
    merge_records,
    plain_condition,
    save_records,
)
from sde_toolkit.lab.page import (
    Card,
    Page,
    Picture,
    write_page,
)
from sde_toolkit.lab.table import (
    format_table,
    plus_minus,
    setting_of,
)

__all__ = [
    "Candidate",
    "Card",
    "Metric",
    "Page",
    "Picture",
    "Record",
    "Reference",
    "compare",
    "figures",
    "format_table",
    "load_records",
    "merge_records",
    "plain_condition",
    "plus_minus",
    "save_records",
    "setting_of",
    "write_page",
]
