"""Figures that are told of a whole evaluation set, as the official scripts of the data sets compute them."""
