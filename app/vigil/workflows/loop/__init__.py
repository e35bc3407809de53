"""The improvement loop: from a sample of traffic to a promoted model, as recorded steps that resume."""
