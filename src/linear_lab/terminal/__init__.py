"""What the terminal shows. Imports no torch, so that it answers at once."""
