"""Training and evaluation of the task classifier. Nothing here is imported while serving."""
