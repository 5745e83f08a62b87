"""Pure functions that compare scores with the truth, or describe an embedding."""
