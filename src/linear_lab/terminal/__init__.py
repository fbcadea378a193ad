"""What the terminal shows. Imports no torch, so that commands such as --help are quick."""
