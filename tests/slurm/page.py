def check(study, slurm):
    pass
