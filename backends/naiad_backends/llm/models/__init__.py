"""Models in torch: one decoder with the switches of `Architecture`. Knows no requests."""
