"""Measuring: data sets of questions, scoring, accuracy against budget, and the cost of selection."""
