"""What is known about a linear model without training it."""
