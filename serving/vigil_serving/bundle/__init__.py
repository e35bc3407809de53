"""The folder that `vigil export` writes and a server loads."""
