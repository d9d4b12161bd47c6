"""Run the command line as `python -m actcli`."""

from actcli.cli import main

if __name__ == "__main__":
    main()
