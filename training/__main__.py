"""``python -m training STAGE``."""

# Not in `cli` itself: other processes have to find its functions under their module name.
from .cli import main


if __name__ == "__main__":
    main()
