"""One host's devices as workers: which, what each gets, and one supervisor that keeps their processes up."""
