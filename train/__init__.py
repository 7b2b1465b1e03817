"""The training program: `python -m train configs/NAME.py [--flags]`."""
