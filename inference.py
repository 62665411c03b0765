"""``python inference.py --model_path DIR --prompt "..."``: see ``python inference.py --help``."""

import sys

from deepgen_npu.cli.entry import inference


if __name__ == "__main__":
    sys.exit(inference())
