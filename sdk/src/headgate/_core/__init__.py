"""What the client thinks, without a colour: no I/O, no clock, no sleep. Imports pydantic, errors, wire types."""
