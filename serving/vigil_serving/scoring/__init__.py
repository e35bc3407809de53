"""Batch scoring: a plan cuts the rows into parts, an engine writes them, and they are joined; torch is never imported.

A part is a function of the plan and its number alone, is written in one step and is checked before it is trusted. So a killed
scoring goes on where it was, one engine goes on with what another left, and a part that is scored twice is the same part.
"""
