"""Our samplers beside those of other libraries, on the same models, starts and budgets."""
