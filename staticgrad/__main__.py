"""`python -m staticgrad` is the command line."""

import sys

from staticgrad.cli import main

sys.exit(main())
