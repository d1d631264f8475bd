"""`python -m tfprune`."""

import sys

from tfprune import cli

sys.exit(cli.main())
