"""`fenhe eval` on the runner: whole texts through every path of a student, and how fast each path decodes."""
