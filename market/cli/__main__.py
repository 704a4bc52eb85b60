import sys

from market.cli.main import main

sys.exit(main())
