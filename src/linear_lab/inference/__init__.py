"""What comes after training: a run measured again, its predictions, and programs that predict by themselves."""
