"""The commands: each parses its flags, calls the other rooms, prints, and turns errors into messages."""
