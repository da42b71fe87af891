"""Several ranks as one run, and the CPUs that they take."""
