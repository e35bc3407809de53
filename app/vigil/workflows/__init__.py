"""What joins packages: evaluate a run, export a run, compile a policy for it, compare, run a suite, the demonstration."""
