"""What is known of a linear model without training it."""
