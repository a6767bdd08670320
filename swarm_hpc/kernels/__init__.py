"""A model as bytes, and the arithmetic that merges the models of several peers into one."""
