"""How the processes of a run share the work: Lightning's strategies, with checkpoints of Vigil's own form."""
