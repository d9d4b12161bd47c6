"""The built-in model and data, and how they were made: `python -m actcli.demo.train2048`."""
