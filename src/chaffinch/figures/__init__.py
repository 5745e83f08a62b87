"""Figures: arrays in, plotly figure out; and the one palette."""
