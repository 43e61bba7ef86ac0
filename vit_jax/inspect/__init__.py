"""What a model does with images: recorded calls, features, attention, the table of its layers."""
