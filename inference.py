"""``python inference.py --model_path DIR --prompt "..."``: see ``python inference.py --help``."""

import sys

from deepgen_npu.cli import inference


if __name__ == "__main__":
    sys.exit(inference())
