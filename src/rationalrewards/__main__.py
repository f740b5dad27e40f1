"""``python -m rationalrewards`` is the ``rationalrewards`` command."""

from .cli import main

main()
