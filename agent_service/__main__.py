"""`python -m agent_service`."""

import sys

from agent_service.cli import main

sys.exit(main())
