"""The rooms that talk to the outside: each one translates, none decides."""
