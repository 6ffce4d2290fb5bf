"""Files and locks, random streams, processes, checks of arguments."""

from sde_toolkit.utils.checks import (
    integer,
)
from sde_toolkit.utils.files import (
    WorkdirLock,
    atomic_file,
    atomic_folder,
    atomic_write,
    atomic_write_text,
    read_document,
    reading,
    remove_leftovers,
    turns,
)
from sde_toolkit.utils.named import named_object
from sde_toolkit.utils.outputs import (
    check_output_directory,
    check_output_file,
)
from sde_toolkit.utils.processes import (
    ALONE,
    LostProcessError,
    Processes,
    launched,
    leading,
)
from sde_toolkit.utils.random import (
    Stream,
    permutation,
    seed_sequence,
    seeded,
    step_generator,
)
from sde_toolkit.utils.tensors import (
    UNSIGNED,
    as_device,
    as_tensor,
    as_times,
    host_tensor,
    per_sample,
    takes_numbers,
)
from sde_toolkit.utils.values import (
    Partial,
    same_values,
)
from solvers.annotations import (
    check_called,
    has_method,
    shown,
)
from solvers.arguments import (
    check_fields,
    checked,
    require,
    returned,
)

__all__ = [
    "ALONE",
    "UNSIGNED",
    "LostProcessError",
    "Partial",
    "Processes",
    "Stream",
    "WorkdirLock",
    "as_device",
    "as_tensor",
    "as_times",
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "atomic_write_text",
    "check_called",
    "check_fields",
    "check_output_directory",
    "check_output_file",
    "checked",
    "has_method",
    "host_tensor",
    "integer",
    "launched",
    "leading",
    "named_object",
    "per_sample",
    "permutation",
    "read_document",
    "reading",
    "remove_leftovers",
    "require",
    "returned",
    "same_values",
    "seed_sequence",
    "seeded",
    "shown",
    "step_generator",
    "takes_numbers",
    "turns",
]
