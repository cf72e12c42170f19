"""`python -m gradroute` is `gradroute-run`."""

from gradroute.commands.run import main

if __name__ == "__main__":
    main()
