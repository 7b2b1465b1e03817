"""Search for the best layers and lengths of a length-adaptive model, for any budget."""
