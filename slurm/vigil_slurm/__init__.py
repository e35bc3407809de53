"""What Vigil knows about the Slurm job that it runs in."""
