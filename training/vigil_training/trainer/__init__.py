"""Lightning module, callbacks, optimizer and loop."""
