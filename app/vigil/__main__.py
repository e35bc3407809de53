"""``python -m vigil`` is the command `vigil`."""

from vigil.entry import main

main()
