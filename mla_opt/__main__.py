"""``python -m mla_opt`` is the command line."""

from mla_opt.cli import main

if __name__ == "__main__":
    main()
