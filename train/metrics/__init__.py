"""What a model is worth: measures of predictions against what was given."""
