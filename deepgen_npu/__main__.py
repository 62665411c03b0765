"""``python -m deepgen_npu``: see `cli`."""

import sys

from .cli import main


sys.exit(main())
