"""The process of a trial, and the messages between it and its worker."""
