"""Work on many rows or files, in processes of this machine or on a Ray cluster."""
