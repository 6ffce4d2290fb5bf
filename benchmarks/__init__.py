"""Programs that measure the library: ``python -m benchmarks`` runs all, ``python -m benchmarks NAME`` one."""
