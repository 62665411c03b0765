"""``python -m deepgen_npu``: see `cli`."""

import sys

from .cli.entry import main


sys.exit(main())
