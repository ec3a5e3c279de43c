"""Benchmarks: data sets of questions, scoring, accuracy against budget, speed, and the cost of selection."""
