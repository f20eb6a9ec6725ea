"""The command line: one file per command, which parses options, calls one function of the API and prints."""
