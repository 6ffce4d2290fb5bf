"""Configurations as trees of fields: ml_collections' two classes, and the types that it does not ship.

    config.sampling.num_steps,    config["sampling"]["num_steps"]        a value, whose type the schema knows

``ConfigDict`` can be changed and ``Config``, ml_collections' ``FrozenConfigDict``, cannot.  Both are
ml_collections' own classes; a type checker reads the declarations here in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:

    class Tree:
        """What the two classes have in common; iteration is over the names of the fields."""

        def __init__(
            self, initial: Mapping[str, Any] | Tree | None = None, *, convert_dict: bool = True
        ) -> None: ...
        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, name: str) -> Any: ...
        def __contains__(self, name: object) -> bool: ...
        def keys(self) -> Iterable[str]:
            """Names of the fields."""

        def items(self) -> Iterable[tuple[str, Any]]:
            """Names and values of the fields."""

        def get(self, name: str, default: Any = None) -> Any:
            """The value of a field, or the default."""

        def to_dict(self) -> dict[str, Any]:
            """The same tree as nested dictionaries."""

    class ConfigDict(Tree):
        """A configuration that can be changed."""

        def __setattr__(self, name: str, value: Any) -> None: ...
        def __setitem__(self, name: str, value: Any) -> None: ...
        def __delitem__(self, name: str) -> None: ...
        def update(self, other: Mapping[str, Any] | Tree) -> None:
            """Replace and add fields."""

    class Config(Tree):
        """A configuration that cannot be changed."""
else:
    from ml_collections import ConfigDict
    from ml_collections import FrozenConfigDict as Config

__all__ = ["Config", "ConfigDict"]
