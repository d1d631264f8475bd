"""`python -m tfprune`."""

import sys

import tfprune_command

sys.exit(tfprune_command.main())
