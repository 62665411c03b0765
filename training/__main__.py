"""``python -m training STAGE``."""

# Apart from `cli`, whose functions other processes have to find under their name.
from .cli import main


if __name__ == "__main__":
    main()
