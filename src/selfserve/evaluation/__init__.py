"""Policies x windows x scenarios x seeds in one tidy table.

``run`` makes it, ``tuning`` finds each system's best constants with one budget for all, ``summary`` says what the table
shows: paired differences with intervals, rankings, frontiers.
"""
