"""Many runs trained as one stacked model."""
