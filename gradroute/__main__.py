"""Run `gradroute-run` as `python -m gradroute`."""

from gradroute.commands.run import main

if __name__ == "__main__":
    main()
