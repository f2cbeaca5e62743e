"""The paper's studies, at the scale of the data that ship with the project."""
