"""Models of other libraries, in and out: what a directory, a pipeline or a function of theirs is here.

Nothing that a directory holds is unpickled or run, and nothing is downloaded.
"""

__all__ = []
