"""Many runs from one command: what is planned, what each job does, what they found."""
