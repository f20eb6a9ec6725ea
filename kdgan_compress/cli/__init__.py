"""The command line: a file a command, each parses, calls one workflow and prints."""
