"""Slurm: what a job asks for, its script, its submission, and how jobs do."""
