"""Subjects that are no model: a function, as a module whose forward is the text of the function."""
